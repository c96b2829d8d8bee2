"""When a drafter is updated: by a fixed stride, or by a bandit that weighs the gain against the time.

The bandit is that of SpecBlock (arXiv 2605.07243), of which only the idea is published: skip, update the
output head, or update everything, whichever promises the most tokens. Score, window and discount are ours.
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
    exploration: float = Field(default=0.05, ge=0)
    """Weight of the confidence bound, c."""
    discount: float = Field(default=0.9, gt=0, le=1)
    """What an observation counts after each later one."""
    min_rejected: int = Field(default=4, ge=0)
    """Rejected tokens of a window below which there is nothing to learn from."""


@dataclass
class Bandit(Schedule):
    """Every W rounds, the arm of the largest H (mean gain + c sqrt(ln n / n_a)) - t_a / window's seconds.

    The gain of an arm is the relative change of tokens per second from the window before it to the one after
    it, in windows of the horizon; the last term is what the training takes, in windows too. An arm that was
    never tried comes first. Where no arm promises anything, or hardly a token was rejected, it skips.
    """

    settings: BanditSettings
    costs: Mapping[Arm, float]
    """Seconds of an update, by arm; an arm that is missing cannot be chosen."""
    _gains: dict[Arm, float] = field(default_factory=dict)
    """Discounted sums of gains."""
    _counts: dict[Arm, float] = field(default_factory=dict)
    """Discounted numbers of gains."""
    _rounds: int = 0
    _tokens: int = 0
    _rejected: int = 0
    _seconds: float = 0.0
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
        if self._last is not None:
            self._learn(*self._last, rate)
        arm = self._best(seconds) if rejected >= self.settings.min_rejected else "skip"
        self._last = arm, rate
        return arm

    def _learn(self, arm: Arm, rate_before: float, rate: float) -> None:
        for known in self._counts:
            self._counts[known] *= self.settings.discount
            self._gains[known] *= self.settings.discount
        self._counts[arm] = self._counts.get(arm, 0.0) + 1
        self._gains[arm] = self._gains.get(arm, 0.0) + (rate - rate_before) / rate_before

    def _best(self, seconds: float) -> Arm:
        """The arm to try; seconds: of the window."""
        arms: tuple[Arm, ...] = tuple(arm for arm in ("skip", "head", "full") if arm in self.costs)
        untried = [arm for arm in arms if arm not in self._counts]
        if untried:
            return untried[0]
        total = sum(self._counts.values())

        def score(arm: Arm) -> float:
            count, settings = self._counts[arm], self.settings
            bound = settings.exploration * math.sqrt(max(math.log(total), 0.0) / count)
            return settings.horizon * (self._gains[arm] / count + bound) - self.costs[arm] / seconds

        best = max(arms, key=score)
        return best if score(best) > 0 else "skip"
