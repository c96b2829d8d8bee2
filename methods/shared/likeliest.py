"""The likeliest tokens behind every row of logits, for methods that keep a few of them for each token.

Shapes: B sequences, m rows, k tokens, V vocabulary, H hidden size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from harness.drafting.drafter import HiddenTap, TargetView

HEAD_INPUT = HiddenTap(layer=-1, point="normed")
"""What the LM head reads: from it follow the logits behind prompt tokens, which no outcome holds."""
_PER_CLASS = 64
"""Tokens of a class in the search for the likeliest ones."""
_CHUNK = 256
"""Prompt positions whose logits are held at the same time."""


def likeliest(logits: Tensor, k: int) -> Tensor:
    """The k likeliest tokens [..., k] int64, the likeliest first."""
    num_classes = logits.shape[-1] // _PER_CLASS
    if logits.device.type == "cpu" and num_classes > 2 * k:
        return _by_classes(logits, k, num_classes)
    return logits.topk(k, dim=-1).indices


def _by_classes(logits: Tensor, k: int, num_classes: int) -> Tensor:
    """The same in two steps, because torch's `topk` on a CPU takes 20 times longer than a maximum.

    Token t is of class t modulo `num_classes`. The k likeliest tokens are in the k classes with the largest
    maxima, or among the last tokens, which fill no class.
    """
    rows = logits.flatten(0, -2)
    whole = _PER_CLASS * num_classes
    maxima = rows[:, :whole].view(len(rows), _PER_CLASS, num_classes).amax(dim=1)
    steps = torch.arange(0, whole, num_classes)[:, None]
    tokens = (steps + maxima.topk(k, dim=-1).indices[:, None]).flatten(1)
    rest = torch.arange(whole, rows.shape[1]).expand(len(rows), -1)
    tokens = torch.cat([tokens, rest], dim=1)
    best = rows.gather(1, tokens).topk(k, dim=-1).indices
    return tokens.gather(1, best).view(*logits.shape[:-1], k)


def likeliest_after(states: Tensor, target: TargetView, k: int) -> Tensor:
    """The k likeliest tokens [B, m, k] after states [B, m, H] of `HEAD_INPUT`."""
    chunks = (states[:, begin : begin + _CHUNK] for begin in range(0, states.shape[1], _CHUNK))
    return torch.cat([likeliest(target.lm_head(chunk), k) for chunk in chunks], dim=1)
