"""The likeliest tokens behind every row of logits, for methods that keep a few of them for each token.

Shapes: B sequences, m rows, k tokens, V vocabulary, H hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from harness.drafting.drafter import HiddenTap, TargetView

HEAD_INPUT = HiddenTap(layer=-1, point="normed")
"""What the LM head reads: from it follow the logits behind prompt tokens, which no outcome holds."""
_PER_CLASS = 16
"""Tokens of a class, and classes of a group, in the search for the likeliest ones."""
_CHUNK = 256
"""Prompt positions whose logits are held at the same time."""


def likeliest(logits: Tensor, k: int, places: Sequence[int] | None = None) -> Tensor:
    """The k likeliest tokens, the likeliest first: [..., k] int64, or [m, k] for some rows.

    places [m]: indices into the rows of the flattened logits [-1, V], which alone are read; None: all rows.
    """
    num_groups = logits.shape[-1] // _PER_CLASS**2
    if logits.device.type == "cpu" and num_groups > 2 * k:
        rows = logits.flatten(0, -2)
        best = _by_classes(rows, range(len(rows)) if places is None else places, k)
        return best if places is not None else best.view(*logits.shape[:-1], k)
    return (logits if places is None else logits.flatten(0, -2)[list(places)]).topk(k, dim=-1).indices


def _by_classes(rows: Tensor, places: Sequence[int], k: int) -> Tensor:
    """The same by a lower bound, as `topk` on a CPU takes six times longer than reading the logits once.

    Token t is of class t modulo the number of classes, and class c of group c modulo the number of groups.
    The k-th largest maximum of a group bounds the k likeliest tokens, and few classes reach it. NumPy's
    maximum of a row takes little more time than reading it; torch's twice that.
    """
    if rows.dtype != torch.float32:
        rows, places = rows[list(places)].float(), range(len(places))
    values, num_tokens = rows.numpy(), rows.shape[1]
    if k == 1:
        return torch.tensor([[int(values[place].argmax())] for place in places], dtype=torch.int64).view(
            -1, 1
        )
    num_classes, num_groups = num_tokens // _PER_CLASS, num_tokens // _PER_CLASS**2
    whole = num_classes * _PER_CLASS
    maxima = np.empty((len(places), num_classes), np.float32)
    for place, out in zip(places, maxima, strict=True):
        np.maximum.reduce(values[place, :whole].reshape(_PER_CLASS, num_classes), out=out)
    grouped = maxima[:, : num_groups * _PER_CLASS].reshape(len(places), _PER_CLASS, num_groups)
    bound = np.partition(grouped.max(axis=1), num_groups - k, axis=1)[:, num_groups - k]
    # NumPy's search for places in two dimensions takes six times longer.
    row, classes = np.divmod(np.flatnonzero(maxima >= bound[:, None]), num_classes)
    members = (classes[:, None] + np.arange(0, whole, num_classes)).ravel()
    # The last tokens fill no class.
    last = np.tile(np.arange(whole, num_tokens), len(places))
    row = np.concatenate([row.repeat(_PER_CLASS), np.arange(len(places)).repeat(num_tokens - whole)])
    return _first(values, np.asarray(places, np.int64), row, np.concatenate([members, last]), bound, k)


def _first(
    values: NDArray[np.float32],
    places: NDArray[np.int64],
    row: NDArray[np.int64],
    tokens: NDArray[np.int64],
    bound: NDArray[np.float32],
    k: int,
) -> Tensor:
    """The k likeliest tokens of each row among the pairs of `row` and `tokens` that reach its bound."""
    found = values[places[row], tokens]
    reach = found >= bound[row]
    row, tokens, found = row[reach], tokens[reach], found[reach]
    counts = np.bincount(row, minlength=len(places))
    if counts.min(initial=k) < k:
        # A NaN reaches no bound.
        return torch.from_numpy(values[places]).topk(k).indices
    order = np.lexsort((-found, row))
    begin = np.cumsum(counts) - counts
    return torch.from_numpy(tokens[order][begin[:, None] + np.arange(k)])


def likeliest_after(states: Tensor, target: TargetView, k: int) -> Tensor:
    """The k likeliest tokens [B, m, k] after states [B, m, H] of `HEAD_INPUT`."""
    chunks = (states[:, begin : begin + _CHUNK] for begin in range(0, states.shape[1], _CHUNK))
    return torch.cat([likeliest(target.lm_head(chunk), k) for chunk in chunks], dim=1)
