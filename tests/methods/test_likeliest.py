"""The likeliest tokens are those of torch.topk, however they are searched for."""

from __future__ import annotations

import pytest
import torch

from methods.shared.likeliest import likeliest


@pytest.mark.parametrize("vocab_size", [9, 64, 1100, 256 * 20, 256 * 20 + 1, 256 * 21 - 1])
@pytest.mark.parametrize("k", [1, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_likeliest_tokens_are_those_of_topk(vocab_size: int, k: int, dtype: torch.dtype) -> None:
    logits = torch.randn(2, 5, vocab_size, generator=torch.Generator().manual_seed(vocab_size)).to(dtype)
    # The largest ones side by side, in one class, and at the very end.
    logits[0, 0, -3:] += 9
    logits[0, 1, :3] += 9
    logits[0, 2, :: max(1, vocab_size // 64)] += 9
    expected = logits.topk(k, dim=-1).indices
    assert torch.equal(likeliest(logits, k), expected)
    assert torch.equal(likeliest(logits, k, [6, 0, 1]), expected.flatten(0, 1)[[6, 0, 1]])
    # Rows of which others lie between, as the riders' rows in a forward.
    assert torch.equal(likeliest(logits[:, 1:4], k), expected[:, 1:4])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), 0.0])
def test_rows_of_equal_or_no_numbers_are_searched_as_topk_does(value: float) -> None:
    logits = torch.randn(3, 256 * 20, generator=torch.Generator().manual_seed(1))
    logits[1, 5:] = value
    found = likeliest(logits, 8)
    assert torch.equal(found[[0, 2]], logits[[0, 2]].topk(8).indices)
    picked, expected = logits[1][found[1]], logits[1].topk(8).values
    torch.testing.assert_close(picked, expected, rtol=0, atol=0, equal_nan=True)
    assert len(set(found[1].tolist())) == 8
