"""What the target's forwards cost, as far as drafters and tree policies may know it."""

from __future__ import annotations

from typing import Protocol

from numpy.typing import ArrayLike


class StepCosts(Protocol):
    """Seconds of the target's forward on this machine; a measured `CostTable` is one, too."""

    def curve(self, batch: float, context: float) -> ArrayLike:
        """Seconds of a forward over 1, 2, ... tokens of each of `batch` sequences, behind `context` cached
        tokens, as far as they were measured."""
