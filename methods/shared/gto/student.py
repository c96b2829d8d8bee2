"""TreeStudent: what group tree optimisation needs of a drafter that it trains.

Shapes: L tokens of a packed row, B places, n nodes of a tree, d tokens of a path.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from harness.drafting.draft import Draft
from harness.drafting.trainable import TrainingRow


class TreeStudent(Protocol):
    """The network of a drafter in a packed row.

    Place i of the row is the round in which token i + 1 is pending: the drafter knows the target's features
    up to token i, and drafts from token i + 2 on. A head of EAGLE, a cascade or a block drafter can be one;
    whoever trains it has two, the network itself and a frozen copy.
    """

    def trees(self, row: TrainingRow, places: Tensor) -> Draft:
        """The trees that decoding would draft at `places` [B]; no gradient is needed."""

    def chains(self, row: TrainingRow, places: Tensor, length: int) -> Draft:
        """The paths of `length` tokens that always take the most probable next one; no gradient is
        needed."""

    def log_probs(self, row: TrainingRow, places: Tensor, paths: Tensor) -> Tensor:
        """[B, d]: log-probabilities that drafting gives to the tokens `paths` [B, d] after `places` [B], each
        after those before it, with their gradient. All of them can be drafted."""
