"""Costs of a round as tree policies weigh them: in forwards of the target over one token per sequence."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from harness.costs.grid import Grid
from harness.costs.table import CostTable
from methods.shared.cost_aware.marginal import RISE, Floats, bucket, strictly_rising


class RoundCosts(ABC):
    """What forwards of the target and of the drafter cost, relative to one token's forward of the target."""

    @abstractmethod
    def verify(self, context: float) -> Floats:
        """[N] cost of a target forward over 1, 2, ... tokens of each sequence behind `context` cached
        ones."""

    @abstractmethod
    def draft(self, context: float) -> Floats:
        """[N] cost of a drafter forward over 1, 2, ... nodes of each sequence behind `context` cached
        tokens."""


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

    def _relative(self, curves: Mapping[int, Sequence[float]], context: float) -> Floats:
        place = bucket(context, self.spacing, len(self.target))
        return strictly_rising(curves[place], self.rise) / self.target[place][0]

    def verify(self, context: float) -> Floats:
        """The curve of the bucket that `context` falls into."""
        return self._relative(self.target, context)

    def draft(self, context: float) -> Floats:
        """The curve of the bucket that `context` falls into."""
        return self._relative(self.drafter, context)


def from_table(
    table: CostTable, call: Grid, batch_size: int, spacing: int, num_buckets: int
) -> BucketedCosts:
    """The curves of a measured table for a batch, at `num_buckets` multiples of `spacing` tokens of context.

    call: seconds of a forward of the drafter's own model, by (batch, context, tokens).

    Raises:
        ConfigError: the table does not reach that batch or that context.
    """
    places = [spacing * (1 + number) for number in range(num_buckets)]
    nodes = np.arange(1, call.axes["tokens"][-1] + 1)
    return BucketedCosts(
        target={place: table.curve(batch_size, place).tolist() for place in places},
        drafter={place: call.at(batch=batch_size, context=place, tokens=nodes).tolist() for place in places},
        spacing=spacing,
    )
