"""What the target's forwards cost, as far as drafters and tree policies may know it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from numpy.typing import ArrayLike


class TargetCosts(Protocol):
    """Seconds of the target's forward on this machine; a measured `CostTable` has them, too."""

    def curve(self, batch: float, context: float) -> ArrayLike:
        """Seconds of a forward over 1, 2, ... tokens of each of `batch` sequences, behind `context` cached
        tokens, as far as they were measured."""


class StepCosts(TargetCosts, Protocol):
    """The same, with a clock for the forwards of a drafter's own model."""

    def seconds(self, call: Callable[[int], None], most: int) -> Sequence[float]:
        """Seconds of `call(1)`, `call(2)`, ... `call(most)`, as every process of the run measures them."""


class CostWeigher:
    """Base of policies, which may decide by what forwards cost."""

    @property
    def weighs_costs(self) -> bool:
        """Whether the policy decides by costs, which `use_costs` has to bring before."""
        return False

    def use_costs(
        self, costs: StepCosts, num_rows: int, rehearse: Callable[[int, int], Callable[[int], None] | None]
    ) -> None:
        """Receive what forwards cost for `num_rows` sequences: of the target from `costs`, of the drafter by
        timing what `rehearse` gives; see `Drafter.rehearse`."""
