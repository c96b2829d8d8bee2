"""Groups of neighbouring places in a packed row, from which the trees of GTO are grown."""

from __future__ import annotations

import random

import torch
from torch import Tensor


def drawn_groups(counts: Tensor, num_groups: int, size: int, source: random.Random) -> Tensor:
    """Places [G, size] int64 of at most `num_groups` groups that do not overlap, in the order of the row.

    counts: [L] bool, the places that a tree may grow from; those of one group are consecutive. No group
    spans two documents, because the last tokens of a document never count. The paper does not say how groups
    are placed. Here each run of places is cut into groups behind a random offset, and of all groups some are
    drawn.
    """
    starts: list[int] = []
    for begin, length in _runs(counts.tolist()):
        number, slack = divmod(length, size)
        offset = begin + source.randint(0, slack) if number else begin
        starts += [offset + size * place for place in range(number)]
    chosen = sorted(source.sample(starts, min(num_groups, len(starts))))
    first = torch.tensor(chosen, dtype=torch.int64, device=counts.device)
    return first[:, None] + torch.arange(size, device=counts.device)


def _runs(counts: list[bool]) -> list[tuple[int, int]]:
    """Begin and length of each run of true values."""
    found, begin = [], None
    for place, is_counted in enumerate([*counts, False]):
        if is_counted and begin is None:
            begin = place
        elif not is_counted and begin is not None:
            found.append((begin, place - begin))
            begin = None
    return found
