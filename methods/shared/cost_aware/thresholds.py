"""What a marginal gain in confidence must exceed: the paper's constants, or the speedup that is achieved
anyway."""

from __future__ import annotations

from abc import ABC, abstractmethod

from pydantic import Field
from typing_extensions import override

from harness.config import configurable


@configurable
class Threshold(ABC):
    """Base of all thresholds; each is in accepted tokens per one-token forward of the target."""

    @property
    @abstractmethod
    def breadth(self) -> float:
        """For another node of a layer, C1 in the paper."""

    @property
    @abstractmethod
    def depth(self) -> float:
        """For another layer, C2 in the paper."""

    @property
    @abstractmethod
    def rerank(self) -> float:
        """For another verified node, C3 in the paper."""

    def forget(self) -> None:  # noqa: B027 - a hook
        """Forget what was observed."""

    def observe(self, emitted: float, cost: float) -> None:  # noqa: B027 - a hook
        """A round emitted `emitted` tokens per sequence and cost `cost` one-token forwards of the target."""


@configurable
class Constants(Threshold):
    """The thresholds of the paper, set by hand for each target and device; its values are for GPUs."""

    c1: float = 4.0
    """Threshold of the breadth."""
    c2: float = 3.0
    """Threshold of the depth."""
    c3: float = 2.5
    """Threshold of the number of verified nodes."""

    @property
    @override
    def breadth(self) -> float:
        return self.c1

    @property
    @override
    def depth(self) -> float:
        return self.c2

    @property
    @override
    def rerank(self) -> float:
        return self.c3


@configurable
class SpeedupThreshold(Threshold):
    """The running speedup: where throughput is largest, the marginal gain per cost equals throughput itself.

    Tokens per time are (1 + u) / (draft + verify). At the best number of nodes a further one changes the
    numerator and the denominator in the same ratio, so it must gain as much per cost as the whole round does.
    Iterating with the achieved ratio is Dinkelbach's algorithm.
    """

    memory: float = Field(default=0.95, ge=0, lt=1)
    """The weight of the rounds so far beside the newest one."""
    least: float = Field(default=1.0, gt=0)
    """Never below this: vanilla emits one token per forward."""

    def __post_init__(self) -> None:
        """Start with nothing observed."""
        self.forget()

    @override
    def forget(self) -> None:
        """Begin with one vanilla forward, which emitted one token."""
        self._emitted = self._cost = 1.0

    @property
    def speedup(self) -> float:
        """Tokens per one-token forward of the target, over the remembered rounds."""
        return self._emitted / self._cost

    @override
    def observe(self, emitted: float, cost: float) -> None:
        self._emitted = self.memory * self._emitted + emitted
        self._cost = self.memory * self._cost + cost

    @property
    @override
    def breadth(self) -> float:
        return max(self.speedup, self.least)

    @property
    @override
    def depth(self) -> float:
        return max(self.speedup, self.least)

    @property
    @override
    def rerank(self) -> float:
        return max(self.speedup, self.least)
