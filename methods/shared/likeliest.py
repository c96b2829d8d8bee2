"""The likeliest tokens behind every row of logits, for methods that keep a few of them for each token.

Shapes: B sequences, m rows, k tokens, V vocabulary, H hidden size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from harness.drafting.drafter import HiddenTap, TargetView

HEAD_INPUT = HiddenTap(layer=-1, point="normed")
"""What the LM head reads: from it follow the logits behind prompt tokens, which no outcome holds."""
_CHUNK = 256
"""Prompt positions whose logits are held at the same time."""


def likeliest(logits: Tensor, k: int) -> Tensor:
    """The k likeliest tokens [..., k] int64, the likeliest first."""
    return logits.topk(k, dim=-1).indices


def likeliest_after(states: Tensor, target: TargetView, k: int) -> Tensor:
    """The k likeliest tokens [B, m, k] after states [B, m, H] of `HEAD_INPUT`."""
    chunks = (states[:, begin : begin + _CHUNK] for begin in range(0, states.shape[1], _CHUNK))
    return torch.cat([likeliest(target.lm_head(chunk), k) for chunk in chunks], dim=1)
