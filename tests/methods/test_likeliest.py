"""The likeliest tokens are those of torch.topk, however they are searched for."""

from __future__ import annotations

import pytest
import torch

from methods.shared.likeliest import likeliest


@pytest.mark.parametrize("vocab_size", [9, 64, 1100, 64 * 40, 64 * 40 + 1, 5000])
@pytest.mark.parametrize("k", [1, 8])
def test_the_likeliest_tokens_are_those_of_topk(vocab_size: int, k: int) -> None:
    logits = torch.randn(2, 5, vocab_size, generator=torch.Generator().manual_seed(vocab_size))
    # The largest ones side by side, in one class, and at the very end.
    logits[0, 0, -3:] += 9
    logits[0, 1, :3] += 9
    logits[0, 2, :: max(1, vocab_size // 64)] += 9
    assert torch.equal(likeliest(logits, k), logits.topk(k, dim=-1).indices)
