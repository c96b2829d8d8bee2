"""DrafterWrapper: a drafter around another one, for recorders, timers and learners that add to it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from typing_extensions import override

from harness.drafting.draft import Draft
from harness.drafting.drafter import Drafter, Outcome, Scope, Tap, TargetView
from harness.drafting.step_costs import StepCosts


class DrafterWrapper(Drafter):
    """Passes every call of the loop on to `inner`; a subclass overrides what it adds to."""

    def __init__(self, inner: Drafter) -> None:
        """inner: the drafter that guesses. Its policy is the wrapper's, because the loop asks the wrapper."""
        super().__init__(policy=inner.policy, remember=inner.remember)
        self.inner = inner

    @property
    @override
    def scope(self) -> Scope:
        return self.inner.scope

    @property
    @override
    def corpus(self) -> str | None:
        return self.inner.corpus

    @property
    @override
    def taps(self) -> tuple[Tap, ...]:
        return self.inner.taps

    @property
    @override
    def num_drafted(self) -> int | None:
        return self.inner.num_drafted

    @property
    @override
    def num_bytes(self) -> int:
        return self.inner.num_bytes

    @override
    def card(self) -> dict[str, Any]:
        return self.inner.card()

    @property
    @override
    def training_prompts(self) -> Sequence[Path]:
        return self.inner.training_prompts

    @override
    def bind(self, target: TargetView) -> None:
        self.inner.bind(target)

    @override
    def check(self, prompts: Sequence[Sequence[int]]) -> None:
        self.inner.check(prompts)

    @override
    def rehearse(self, num_rows: int, context: int) -> Callable[[int], None] | None:
        return self.inner.rehearse(num_rows, context)

    @property
    @override
    def weighs_costs(self) -> bool:
        return self.inner.weighs_costs

    @override
    def use_costs(self, costs: StepCosts, num_rows: int) -> None:
        self.inner.use_costs(costs, num_rows)

    @override
    def warm_up(self, num_rows: int) -> None:
        self.inner.warm_up(num_rows)

    @override
    def new_call(self, keep_memory: bool) -> None:
        self.inner.new_call(keep_memory)

    @override
    def reset(self, num_rows: int) -> None:
        self.inner.reset(num_rows)

    @override
    def propose(self, room: Sequence[int]) -> Draft:
        return self.inner.propose(room)

    @override
    def observe(self, outcome: Outcome) -> None:
        self.inner.observe(outcome)

    @override
    def keep(self, rows: Sequence[int]) -> None:
        self.inner.keep(rows)
