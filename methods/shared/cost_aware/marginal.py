"""The arithmetic of CAST: marginal confidence against marginal time.

Sources: Hong, Tan and Hu 2025, arXiv 2510.26577, algorithm 1 and theorem 4.1. The paper does not print the
loop of algorithm 1; the one here is the natural reading of it, and it accepts stepped cost curves.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

RISE = 1e-9
"""By how much the cost of each further item rises at least, in seconds."""
_ROUNDING = 1e-12
"""Relative rounding error that does not decide whether a marginal ratio reaches a threshold."""


def strictly_rising(cost: ArrayLike, rise: float = RISE) -> Floats:
    """The running maximum of `cost` [n] (seconds of 1, 2, ... items), plus `rise` for each further item.

    Measured costs are stepped and even inverted, because kernels work in tiles; an inverted curve would turn
    the sign of a marginal ratio around.
    """
    known = np.maximum.accumulate(np.asarray(cost, np.float64))
    rising: Floats = known + rise * np.arange(len(known))
    return rising


def num_worthwhile(utility: ArrayLike, cost: ArrayLike, threshold: float, *, inclusive: bool = False) -> int:
    """How many of the items to keep, at least 1: algorithm 1.

    utility [n]: summed confidence of the best 1, 2, ... items. cost [n]: what they cost together, strictly
    rising. An item is kept, with all before it, if the gain per cost since the last kept item exceeds
    `threshold` (`inclusive`: reaches it). A kept item may lie behind one that does not pay by itself: so it
    jumps over a step of the cost curve.
    """
    # Lists, because this runs between two forwards and numpy is slow at single numbers.
    gained: list[float] = np.asarray(utility, np.float64).tolist()
    spent: list[float] = np.asarray(cost, np.float64).tolist()
    kept = 0
    for item in range(1, len(gained)):
        ratio = (gained[item] - gained[kept]) / (spent[item] - spent[kept])
        if ratio > threshold or (inclusive and ratio >= threshold * (1 - _ROUNDING)):
            kept = item
    return kept + 1


def bucket(context: float, spacing: int, num_buckets: int) -> int:
    """The tokens of context, `spacing`, 2 * `spacing`, ..., that stand for `context` cached tokens.

    The paper's formula, as printed, always gives the last bucket; this is what it must mean.
    """
    return (min(int(context // spacing), num_buckets - 1) + 1) * spacing


class DepthGate:
    """Whether another layer pays: CAST's moving average of how confidence falls from layer to layer."""

    def __init__(self, length: int, ratios: Sequence[float] = (1.0,)) -> None:
        """length: how many ratios are remembered, R in the paper. ratios: those known already."""
        self._length, self.ratios = length, list(ratios)[-length:]

    @property
    def mean(self) -> float:
        """The mean of the remembered ratios, alpha in the paper."""
        return sum(self.ratios) / len(self.ratios)

    def observe(self, ratio: float) -> None:
        """Remember the confidence of a layer over that of the layer before; the oldest ratio is forgotten."""
        self.ratios = [*self.ratios, ratio][-self._length :]

    def gain(self, utility: float, cost: float) -> float:
        """The expected confidence of the next layer over the cost of this one."""
        return self.mean * utility / cost
