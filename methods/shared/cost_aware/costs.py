"""Costs of a round as tree policies weigh them: in forwards of the target over one token per sequence."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from typing_extensions import override

from harness.drafting.step_costs import StepCosts
from methods.shared.cost_aware.marginal import RISE, Floats, bucket, strictly_rising


class RoundCosts(ABC):
    """What forwards of the target and of the drafter cost, relative to one token's forward of the target."""

    @abstractmethod
    def verify(self, context: float) -> Floats:
        """[N] cost of verifying 1, 2, ... nodes of each sequence behind `context` cached tokens."""

    @abstractmethod
    def draft(self, context: float) -> Floats:
        """[N] cost of a drafter forward over 1, 2, ... nodes of each sequence, likewise."""


@dataclass(frozen=True, kw_only=True)
class BucketedCosts(RoundCosts):
    """Measured curves per bucket of context."""

    target: Mapping[int, Sequence[float]]
    """Tokens of context (`spacing`, 2 * `spacing`, ...) -> seconds of the target over 1, 2, ... tokens."""
    drafter: Mapping[int, Sequence[float]]
    """The same of the drafter's own model."""
    spacing: int
    """Tokens between two buckets, L in the paper."""
    rise: float = RISE
    """Seconds by which each further token costs more at least."""
    pending_counts: bool = True
    """Whether n nodes cost what n + 1 tokens cost, as the pending token is verified with them. The paper
    looks up n."""

    @override
    def verify(self, context: float) -> Floats:
        relative = self._relative(self.target, context)
        return relative[1:] if self.pending_counts else relative

    @override
    def draft(self, context: float) -> Floats:
        return self._relative(self.drafter, context)

    def _relative(self, curves: Mapping[int, Sequence[float]], context: float) -> Floats:
        place = bucket(context, self.spacing, len(self.target))
        return strictly_rising(curves[place], self.rise) / self.target[place][0]


def measured(
    costs: StepCosts,
    num_rows: int,
    rehearse: Callable[[int, int], Callable[[int], None] | None],
    *,
    most_nodes: int,
    spacing: int,
    num_buckets: int,
) -> BucketedCosts:
    """The target's curves from `costs`, and the drafter's by timing what `rehearse` gives.

    rehearse: `Drafter.rehearse`. most_nodes: the most nodes of a forward of the drafter. A drafter without a
    model of its own costs nothing per node.
    """

    def drafting(context: int) -> list[float]:
        call = rehearse(num_rows, context)
        return [0.0] * most_nodes if call is None else list(costs.seconds(call, most_nodes))

    places = [spacing * (1 + number) for number in range(num_buckets)]
    return BucketedCosts(
        target={place: np.asarray(costs.curve(num_rows, place), float).tolist() for place in places},
        drafter={place: drafting(place) for place in places},
        spacing=spacing,
    )
