"""When a drafter is updated: by a fixed stride, or by a bandit that weighs the gain against the time.

The bandit is that of SpecBlock (arXiv 2605.07243), of which only the idea is published: skip, update the
output head, or update everything, whichever promises the most tokens. Score and settings are ours.
It reads no clock. A round takes what its forwards cost on this machine, which is measured before the run.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from pydantic import Field
from typing_extensions import override

from harness.config import configurable

Arm = Literal["skip", "head", "full"]
"""What is trained after a round: nothing, the output head, or everything."""


class Schedule(ABC):
    """Decides after every round of one sequence."""

    @abstractmethod
    def decide(self, num_emitted: int, num_rejected: int, round_s: float) -> Arm:
        """What to train after a round that drafted something.

        num_emitted: tokens that it emitted. num_rejected: drafted tokens that it rejected. round_s: what it
        cost, in seconds.
        """


@dataclass
class Stride(Schedule):
    """Trains everything after every `stride`-th round; never with stride 0."""

    stride: int
    _num_rounds: int = 0

    @override
    def decide(self, num_emitted: int, num_rejected: int, round_s: float) -> Arm:
        self._num_rounds += 1
        return "full" if self.stride and self._num_rounds % self.stride == 0 else "skip"


@configurable
class BanditSettings:
    """The bandit's settings; ours, as the paper's are not known."""

    window: int = Field(default=8, ge=1)
    """Rounds from one decision to the next, W; the gain of an update is measured over one window."""
    horizon: float = Field(default=4.0, ge=0)
    """Windows over which a gain is expected to last, H."""
    exploration: float = Field(default=0.01, ge=0, le=1)
    """Share of the rounds' time, counted H windows ahead, that updates may take while nothing shows that they
    pay."""
    caution: float = Field(default=0.5, ge=0)
    """Standard errors by which a gain must exceed what it costs."""
    discount: float = Field(default=0.95, gt=0, le=1)
    """What an observation counts after each later one."""
    min_rejected: int = Field(default=4, ge=0)
    """Rejected tokens of a window below which there is nothing to learn from."""


@dataclass
class _Gains:
    """The gains that followed one arm: discounted number, sum and sum of squares."""

    count: float = 0.0
    total: float = 0.0
    squares: float = 0.0

    def fade(self, discount: float) -> None:
        self.count, self.total, self.squares = (
            discount * one for one in (self.count, self.total, self.squares)
        )

    def add(self, gain: float) -> None:
        self.count, self.total, self.squares = self.count + 1, self.total + gain, self.squares + gain**2


_NOISE = 0.2
"""Relative change of tokens per second from one window to the next, before anything was seen."""


@dataclass
class Bandit(Schedule):
    """Every W rounds, the arm of the largest H (G - caution e sqrt(n)) / (n + 1) - t_a / t, if above 0.

    G is the sum of the n gains that were seen behind the arm. A gain is the relative change of tokens per
    second from the window before the decision to the one after it, and e what it is by chance, which windows
    without an update show. An arm's gains thus count minus `caution` standard errors, together with one
    imagined gain of 0. t_a is the time of an update, t that of the window.

    Where no arm promises anything, the one on which least time was spent is tried, as soon as its cost is
    within the share of the time that tries may take.
    """

    settings: BanditSettings
    costs: Mapping[Arm, float]
    """Seconds of an update, by arm; an arm that is missing cannot be chosen."""
    _gains: dict[Arm, _Gains] = field(default_factory=dict)
    _rounds: int = 0
    _tokens: int = 0
    _rejected: int = 0
    _seconds: float = 0.0
    _elapsed: float = 0.0
    """Seconds of all windows so far."""
    _tried: float = 0.0
    """Seconds of updates without a promise."""
    _spent: dict[Arm, float] = field(default_factory=dict)
    """Seconds of all updates, by arm."""
    _last: tuple[Arm, float] | None = None
    """The arm of the last decision, and the tokens per second before it."""

    @override
    def decide(self, num_emitted: int, num_rejected: int, round_s: float) -> Arm:
        self._rounds += 1
        self._tokens += num_emitted
        self._rejected += num_rejected
        self._seconds += round_s
        if self._rounds < self.settings.window:
            return "skip"
        rate, seconds, rejected = self._tokens / self._seconds, self._seconds, self._rejected
        self._rounds = self._tokens = self._rejected = 0
        self._seconds = 0.0
        self._elapsed += seconds
        if self._last is not None:
            self._learn(*self._last, rate)
        arm: Arm = "skip"
        if rejected >= self.settings.min_rejected:
            arm = self._best(seconds) or self._untried(seconds) or "skip"
        self._last = arm, rate
        if arm != "skip":
            self._spent[arm] = self._spent.get(arm, 0.0) + self.costs[arm]
        return arm

    def _learn(self, arm: Arm, rate_before: float, rate: float) -> None:
        for known in self._gains.values():
            known.fade(self.settings.discount)
        self._gains.setdefault(arm, _Gains()).add((rate - rate_before) / rate_before)

    @property
    def _updates(self) -> list[Arm]:
        arms: tuple[Arm, ...] = ("head", "full")
        return [arm for arm in arms if arm in self.costs]

    def _best(self, seconds: float) -> Arm | None:
        """The update that promises most, if any promises more than it costs; seconds: of the window."""
        idle, settings = self._gains.get("skip", _Gains()), self.settings
        noise = math.sqrt((_NOISE**2 + idle.squares) / (1 + idle.count))

        def score(arm: Arm) -> float:
            seen = self._gains.get(arm, _Gains())
            certain = (seen.total - settings.caution * noise * math.sqrt(seen.count)) / (seen.count + 1)
            return settings.horizon * certain - self.costs[arm] / seconds

        best = max(self._updates, key=score, default=None)
        return best if best is not None and score(best) > 0 else None

    def _untried(self, seconds: float) -> Arm | None:
        """The update on which least time was spent, if there is time to try it."""
        settings = self.settings
        allowed = settings.exploration * (self._elapsed + settings.horizon * seconds) - self._tried
        # Not the cheapest that is within the share, or what is dear would never be tried.
        arm = min(self._updates, key=lambda one: self._spent.get(one, 0.0), default=None)
        if arm is None or self.costs[arm] > allowed:
            return None
        self._tried += self.costs[arm]
        return arm
