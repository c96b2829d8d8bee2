"""TTS: Test-Time Speculation (arXiv 2605.09329v2): a drafter that is distilled while the answer is written.

Verification computes the target's distribution behind every drafted token anyway. Every `stride` rounds the
drafter takes one step of Adam towards those of the latest round, so that on a long answer it follows the
text that it was not trained on. The weights belong to one answer and are reset for the next. The output is
exact, because weights change between rounds only: what is drawn from was computed with the weights that
drafted.

The authors' code is not public, and the paper gives no learning rate, loss weights or strides; these are
ours. Sequences that are decoded together have a copy of the drafter each. With `schedule=bandit` updates
happen where they pay (see `schedules`), as in SpecBlock (arXiv 2605.07243).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, Literal, cast

import torch
from pydantic import Field
from typing_extensions import override

from harness.config import ConfigError, configurable, naming
from harness.drafting.draft import Draft
from harness.drafting.drafter import Drafter, Outcome, Tap, TargetView
from harness.drafting.online import OnlineDrafter
from harness.drafting.step_costs import StepCosts
from methods.tts.lane import Lane, of_row, stacked
from methods.tts.learner import Recipe
from methods.tts.schedules import Arm, Bandit, BanditSettings, Schedule, Stride

_CONTEXT = 256
"""Cached tokens behind which the cost of a round is looked up."""


@configurable
class Tts(Drafter):
    """Trains another drafter on line."""

    base: Drafter
    """The drafter that is trained; an `OnlineDrafter`."""
    schedule: Literal["fixed_stride", "bandit", "always", "never"] = "fixed_stride"
    """When it is updated; `never` is the drafter as it was loaded."""
    stride: int = Field(default=16, ge=1)
    """Rounds from one update to the next (`fixed_stride`)."""
    recipe: Recipe = Field(default_factory=Recipe)
    """Its training."""
    bandit: BanditSettings = Field(default_factory=BanditSettings)
    """Settings of `schedule=bandit`."""
    side_stream: bool = False
    """Whether updates run beside the next round, on a CUDA stream of their own; their weights then serve
    from the round after it."""

    @property
    @override
    def taps(self) -> tuple[Tap, ...]:
        return self.base.taps

    @property
    @override
    def num_drafted(self) -> int | None:
        return self.base.num_drafted

    @property
    @override
    def num_bytes(self) -> int:
        return sum(lane.num_bytes for lane in self.lanes)

    @override
    def card(self) -> dict[str, Any]:
        return self.base.card()

    @property
    @override
    def training_prompts(self) -> Sequence[Path]:
        return self.base.training_prompts

    @override
    def bind(self, target: TargetView) -> None:
        """Bind the drafter, and copy its weights to train them.

        Raises:
            ConfigError: it cannot be trained on line, shortens its drafts by a policy of its own, or does not
                fit the target; or a stream is asked for where there is none.
        """
        super().bind(target)
        if not isinstance(self.base, OnlineDrafter):
            raise ConfigError(
                f"base: {type(self.base).__name__} cannot be trained while it drafts; name a method with a"
                " head that can, as in methods.tts.base=eagle3 or methods.tts.base=specblock"
            )
        if self.base.policy.shortens:
            raise ConfigError(
                "base.policy: drafts are shortened behind the training; give the policy to methods.tts.policy"
            )
        if self.side_stream and target.device.type != "cuda":
            raise ConfigError(
                f"side_stream=true: a device of the type {target.device.type} has no streams; leave it out"
            )
        self._unbound = deepcopy(self.base)
        self._costs: tuple[StepCosts, int] | None = None
        self._arms: dict[Arm, float] = {"skip": 0.0}
        self._verify_s: list[float] = [1.0]
        self._draft_s = 0.0
        self._running: list[Lane] = []
        with naming("base"):
            self.base.bind(target)
            first = self._lane(self.base)
        self.lanes = [first]
        """One for every sequence that was ever decoded together with others."""

    @override
    def check(self, prompts: Sequence[Sequence[int]]) -> None:
        with naming("base"):
            self.base.check(prompts)

    @override
    def rehearse(self, num_rows: int, context: int) -> Callable[[int], None] | None:
        return self.base.rehearse(num_rows, context)

    @property
    @override
    def weighs_costs(self) -> bool:
        return super().weighs_costs or self.base.weighs_costs or self.schedule == "bandit"

    @override
    def use_costs(self, costs: StepCosts, num_rows: int) -> None:
        super().use_costs(costs, num_rows)
        self._costs = costs, num_rows
        for lane in self.lanes:
            lane.drafter.use_costs(costs, 1)
        if self.schedule == "bandit":
            self._measure(costs, num_rows)

    def _measure(self, costs: StepCosts, num_rows: int) -> None:
        """What rounds and updates cost, for the bandit."""
        self._verify_s = [float(one) for one in cast(Any, costs.curve(num_rows, _CONTEXT))]
        forward = self.base.rehearse(1, _CONTEXT)
        self._draft_s = 0.0 if forward is None else costs.seconds(forward, 1)[0]
        lane = self.lanes[0]
        assert lane.learner is not None
        for part in lane.learner.parts:
            self._arms[part] = costs.seconds(lane.rehearsed(self._target, part), 1)[0]
        lane.begin()

    @override
    def warm_up(self, num_rows: int) -> None:
        self._lanes_for(num_rows)
        for lane in self.lanes:
            lane.drafter.warm_up(1)

    @override
    def new_call(self, keep_memory: bool) -> None:
        for lane in self.lanes:
            lane.drafter.new_call(keep_memory)

    @override
    def reset(self, num_rows: int) -> None:
        self._running = self._lanes_for(num_rows)
        for lane in self._running:
            lane.begin()

    @override
    def propose(self, room: Sequence[int]) -> Draft:
        drafts = [lane.drafter.propose([limit]) for lane, limit in zip(self._running, room, strict=True)]
        return stacked(drafts, self._target.vocab_size)

    @override
    def observe(self, outcome: Outcome) -> None:
        if outcome.rows is not None:
            lanes = [self._running[row] for row in outcome.rows]
            for lane in lanes:
                lane.begin()
        else:
            lanes = self._running
        width = outcome.draft.width if outcome.draft is not None else 0
        round_s = self._draft_s + self._verify_s[min(width, len(self._verify_s) - 1)]
        for row, lane in enumerate(lanes):
            lane.observe(of_row(outcome, row), round_s)

    @override
    def keep(self, rows: Sequence[int]) -> None:
        self._running = [self._running[row] for row in rows]

    def _lanes_for(self, num_rows: int) -> list[Lane]:
        while len(self.lanes) < num_rows:
            drafter = deepcopy(self._unbound)
            assert isinstance(drafter, OnlineDrafter)
            drafter.bind(self._target)
            if self._costs is not None:
                drafter.use_costs(self._costs[0], 1)
            self.lanes.append(self._lane(drafter))
        return self.lanes[:num_rows]

    def _lane(self, drafter: OnlineDrafter) -> Lane:
        stream = (
            torch.cuda.Stream(self._target.device)  # type: ignore[no-untyped-call]
            if self.side_stream
            else None
        )
        return Lane(drafter, self.recipe, None if self.schedule == "never" else self._schedule, stream)

    def _schedule(self) -> Schedule:
        if self.schedule == "bandit":
            return Bandit(self.bandit, self._arms)
        return Stride(1 if self.schedule == "always" else self.stride)
