"""Rounds taken apart: `python -m harness.cost parts` and `python -m harness.cost split`."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile
from typing_extensions import override

from harness.drafting.draft import Draft
from harness.drafting.drafter import Drafter, Outcome
from harness.drafting.drafter_wrapper import DrafterWrapper
from harness.drafting.trees import DynamicTree
from harness.profiling.setup import Finding, ProfilingSetup
from harness.system.clock import synchronize

_WORK = frozenset(f"aten::{name}" for name in ("linear", "scaled_dot_product_attention", "logsumexp", "topk"))
"""Operators that any implementation of a head has to run; the remaining time of a draft is overhead."""


class WatchedDrafter(DrafterWrapper):
    """Times the drafts of another drafter and acts between its rounds."""

    def __init__(
        self,
        inner: Drafter,
        around: Callable[[Callable[[], Draft]], Draft] = lambda draft: draft(),
        after: Callable[[Outcome], None] = lambda outcome: None,
    ) -> None:
        """around: is given the call that drafts and returns its draft. after: follows every `observe`."""
        super().__init__(inner)
        self._around, self._after = around, after

    @override
    def propose(self, room: Sequence[int]) -> Draft:
        return self._around(lambda: self.inner.propose(room))

    @override
    def observe(self, outcome: Outcome) -> None:
        super().observe(outcome)
        self._after(outcome)


def parts(setup: ProfilingSetup) -> list[Finding]:
    """Compare rounds with their parts, each timed alone between two rounds of the loop.

    The parts: the target's forward over the round's draft and over one token, and for dynamic trees the
    forwards of the drafter's own model that the round made. Medians; one finding per drafter and batch.
    """
    found = []
    for name, drafter in setup.some_drafters().items():
        for batch in setup.profile.batches:
            setup.profile.choose_steps(setup.target, batch)
            clock = _PartsClock(setup, drafter, batch)
            watched = WatchedDrafter(drafter, clock.around, clock.after)
            setup.engine.generate(setup.requests(batch), watched, setup.params(), setup.acceptor)
            spent = {f"{key}_ms": _median_ms(values) for key, values in clock.spent.items() if values}
            alone = spent["verify_ms"] + spent.get("model_ms", 0.0)
            found.append(
                {"drafter": name, "batch": batch, **spent, "round_over_parts": spent["round_ms"] / alone}
            )
            setup.note(
                f"{name}, batch {batch}: round {spent['round_ms']:.2f} ms; alone: verify"
                f" {spent['verify_ms']:.2f} ms, one token {spent['one_token_ms']:.2f} ms, drafter's model"
                f" {spent.get('model_ms', 0.0):.2f} ms; round / parts {spent['round_ms'] / alone:.3f}"
            )
    return found


class _PartsClock:
    """Times rounds from `propose` to `observe`, and after each its parts."""

    def __init__(self, setup: ProfilingSetup, drafter: Drafter, batch: int) -> None:
        self.spent: dict[str, list[float]] = {key: [] for key in ("round", "verify", "one_token", "model")}
        self._target, self._batch = setup.target, batch
        tree = getattr(drafter, "tree", None)
        self._tree = tree if isinstance(tree, DynamicTree) else None
        # A drafter of its own, as a rehearsal forgets every sequence.
        other = copy.copy(drafter)
        other.bind(setup.target)
        self._call = other.rehearse(batch, setup.profile.contexts[0])
        self._begin, self._num_fed = 0.0, 1

    def around(self, draft: Callable[[], Draft]) -> Draft:
        synchronize(self._target.device)
        self._begin = time.perf_counter()
        return draft()

    def after(self, outcome: Outcome) -> None:
        if outcome.draft is None:
            return
        synchronize(self._target.device)
        self.spent["round"].append(time.perf_counter() - self._begin)
        pending = torch.ones(self._batch, dtype=torch.int64, device=self._target.device)
        # A copy has no masks yet, like any draft that the loop receives.
        for key, draft in (
            ("verify", replace(outcome.draft)),
            ("one_token", Draft.empty(self._batch, self._target.device)),
        ):
            self.spent[key].append(self._clocked(self._target.verify, pending, draft))
        if self._call is not None and self._tree is not None:
            widths = [self._num_fed, *[self._tree.top_k] * self._tree.depth]
            self.spent["model"].append(sum(self._clocked(self._call, width) for width in widths))
        self._num_fed = max(map(len, outcome.committed))

    def _clocked(self, call: Callable[..., object], *arguments: object) -> float:
        synchronize(self._target.device)
        begin = time.perf_counter()
        call(*arguments)
        synchronize(self._target.device)
        return time.perf_counter() - begin


def split(setup: ProfilingSetup) -> list[Finding]:
    """Split the time of a draft into operators that a head needs and overhead.

    Drafts are timed without the profiler, which slows what it sees, and profiled in a second generation.
    Medians over rounds; one finding per drafter and batch.
    """
    found = []
    for name, drafter in setup.some_drafters().items():
        for batch in setup.profile.batches:
            setup.profile.choose_steps(setup.target, batch)
            drafts: list[float] = []
            works: list[float] = []
            verify: list[float] = []
            for around in (lambda draft: draft(), _timed(drafts, setup), _profiled(works)):
                watched = WatchedDrafter(drafter, around)
                made = setup.engine.generate(setup.requests(batch), watched, setup.params(), setup.acceptor)
                num_rounds = min(len(one.verify_ns) for one in made)
                verify = [sum(one.verify_ns[place] for one in made) * 1e-9 for place in range(num_rounds)]
            draft_ms, work_ms = _median_ms(drafts), _median_ms(works)
            line: Finding = {
                "drafter": name,
                "batch": batch,
                "draft_ms": draft_ms,
                "overhead": 1 - work_ms / draft_ms,
                "verify_ms": _median_ms(verify),
            }
            found.append(line)
            setup.note(
                f"{name}, batch {batch}: draft {draft_ms:.2f} ms, of which overhead {line['overhead']:.1%};"
                f" verify {line['verify_ms']:.2f} ms"
            )
    return found


def _timed(spans: list[float], setup: ProfilingSetup) -> Callable[[Callable[[], Draft]], Draft]:
    def around(draft: Callable[[], Draft]) -> Draft:
        synchronize(setup.target.device)
        begin = time.perf_counter()
        made = draft()
        synchronize(setup.target.device)
        spans.append(time.perf_counter() - begin)
        return made

    return around


def _profiled(works: list[float]) -> Callable[[Callable[[], Draft]], Draft]:
    def around(draft: Callable[[], Draft]) -> Draft:
        with profile(activities=[ProfilerActivity.CPU]) as seen:
            made = draft()
        events: Any = seen.key_averages()
        # The total of an operator includes the operators that it calls.
        works.append(sum(event.cpu_time_total for event in events if event.key in _WORK) * 1e-6)
        return made

    return around


def _median_ms(seconds: Sequence[float]) -> float:
    """The median in milliseconds, without the first round, which may feed the prompt to a drafter's model."""
    return float(np.median(seconds[1:] or seconds)) * 1000
