"""The kernel `grouped` against attention written out, in every branch that a CPU takes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from harness.runtime.attention import grouped


def written_out(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """Attention [B, n, Hq, D] in float64."""
    groups = query.shape[1] // key.shape[1]
    query, key, value = (one.double() for one in (query, key, value))
    key, value = (one.repeat_interleave(groups, dim=1) for one in (key, value))
    scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    return (scores.softmax(-1) @ value).transpose(1, 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("num_new", "masked"), [(1, False), (1, True), (3, True), (40, True)])
@pytest.mark.parametrize(("heads", "key_heads"), [(6, 2), (2, 2)])
def test_groups_of_heads_attend_to_what_the_mask_leaves(
    dtype: torch.dtype, num_new: int, masked: bool, heads: int, key_heads: int
) -> None:
    torch.manual_seed(0)
    query = torch.randn(3, heads, num_new, 16).to(dtype)
    # As a cache gives them: the first slots of larger buffers.
    key, value = (torch.randn(3, key_heads, 64, 16).to(dtype)[:, :, :50] for _ in range(2))
    mask = torch.rand(3, 1, num_new, 50) < 0.7 if masked else None
    found, _ = grouped(nn.Module(), query, key, value, mask)
    assert found.dtype == dtype
    tolerance = 1e-5 if dtype == torch.float32 else 0.02
    torch.testing.assert_close(found.double(), written_out(query, key, value, mask), atol=tolerance, rtol=0)
