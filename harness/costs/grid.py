"""Grid: measured seconds at points of named axes, made monotone, linear between them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from harness.config import ConfigError

_LEAST_STEP = 1e-6
"""Each further token costs at least this share more, so that costs rise strictly."""


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Seconds at points of named axes (`batch`, `context`, perhaps `tokens`), linear between them.

    Below the first context the first one's value holds; anywhere else outside is refused.
    """

    axes: dict[str, tuple[int, ...]]
    values: Floats

    def covers(self, **places: ArrayLike) -> bool:
        """Whether `at` would answer."""
        return not self._outside(places)

    def at(self, **places: ArrayLike) -> Floats:
        """Seconds at one place, or at many: arrays that broadcast.

        Raises:
            ConfigError: outside of what was measured.
        """
        if outside := self._outside(places):
            name, given = outside
            points = self.axes[name]
            raise ConfigError(
                f"cost table: {name} {given:g} is outside of what was measured, {points[0]} to {points[-1]};"
                f" measure it with python -m harness.cost costs.{_SETTINGS[name]}=[...,{math.ceil(given)}]"
            )
        sides = []
        for name, points in self.axes.items():
            known = np.asarray(points, float)
            place = np.clip(np.asarray(places[name], float), known[0], known[-1])
            low = np.clip(np.searchsorted(known, place, side="right") - 1, 0, max(len(known) - 2, 0))
            high = np.minimum(low + 1, len(known) - 1)
            step = known[high] - known[low]
            share = np.where(step > 0, (place - known[low]) / np.where(step > 0, step, 1), 0.0)
            sides.append(((low, 1 - share), (high, share)))
        total: Any = 0.0
        for corner in product(*sides):
            weight: Any = 1.0
            for _, share in corner:
                weight = weight * share
            total = total + weight * self.values[tuple(index for index, _ in corner)]
        return np.asarray(total, float)

    def _outside(self, places: Mapping[str, ArrayLike]) -> tuple[str, float] | None:
        """The first axis on which a place is not covered, and that place."""
        for name, points in self.axes.items():
            given = np.asarray(places[name], float)
            if not given.size:
                continue
            if given.max() > points[-1]:
                return name, float(given.max())
            if given.min() < points[0] and name != "context":
                return name, float(given.min())
        return None

    def to_json(self) -> dict[str, Any]:
        """A dict of JSON types; `from_json` is its inverse."""
        return {"axes": {name: list(points) for name, points in self.axes.items()}, "s": self.values.tolist()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Grid:
        """Read what `to_json` wrote."""
        axes = {name: tuple(points) for name, points in data["axes"].items()}
        return cls(axes=axes, values=np.asarray(data["s"], float).reshape([len(p) for p in axes.values()]))


_SETTINGS = {"batch": "batches", "context": "contexts", "tokens": "tokens"}
"""Names of the axes in `conf/cost.yaml`."""


def repaired(values: ArrayLike) -> Floats:
    """Measured seconds [batch, context, ...] made monotone along every axis, strictly along the last.

    Tile sizes and noise make real tables stepped or even inverted, which flips the sign of what a token
    costs. The last axis: isotonic regression (Ayer et al. 1955); the others: running maximum.
    """
    fixed = np.apply_along_axis(isotonic, -1, np.asarray(values, float))
    for axis in range(fixed.ndim - 1):
        fixed = np.maximum.accumulate(fixed, axis=axis)
    return np.asarray(fixed * (1 + _LEAST_STEP * np.arange(fixed.shape[-1])), float)


def isotonic(values: Sequence[float] | Floats) -> Floats:
    """The nondecreasing sequence nearest to `values` in least squares (pool adjacent violators)."""
    pools: list[tuple[float, int]] = []
    for value in values:
        mean, count = float(value), 1
        while pools and pools[-1][0] > mean:
            other, size = pools.pop()
            mean, count = (mean * count + other * size) / (count + size), count + size
        pools.append((mean, count))
    return np.concatenate([np.full(count, mean) for mean, count in pools])


Floats = NDArray[np.float64]
