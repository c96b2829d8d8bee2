"""Timing of verify steps: which kind of step is fastest for each width, and which widths to pad to.

Matrix libraries are not monotone: on some CPUs three tokens cost more than five. A draft may then be padded
to a cheaper width; its `size` says how many of its nodes are real.
"""

from __future__ import annotations

import math
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch

from harness.drafting.draft import Draft
from harness.drafting.drafter import Drafter
from harness.profiling.step_memory import StepMemory
from harness.system.clock import synchronize
from harness.system.progress import waiting
from harness.target.model import Target

_MIN_GAIN = 0.05
"""Padding has to save this share of a forward; smaller gains are noise."""

_NUM_WIDTHS = 33
"""Widths that are timed where nothing is compiled: 0 to 32 drafted tokens."""
_WIDTHS_OF_PROGRAMS = (*range(9), 11, 13, 15, 19, 23, 27, 32)
"""Widths that are timed where a program serves any width: its time grows evenly, so few of the wide ones."""
_NUM_CHECKED = 3
"""Widths, beside those where the kind changes, at which all kinds of steps are timed to see whether a
recalled choice is still right."""
_STILL_RIGHT = 1.15
"""A recalled choice may take this many times the fastest kind's time, for few repeats are noisy."""


class StepTimings(NamedTuple):
    """How a target verifies chains of n = 0, 1, ... tokens."""

    steps: list[str]
    """The kind of step to take, by n."""
    verify_ns: list[float]
    """Nanoseconds of that step, by n."""
    by_step: dict[str, list[float]]
    """Nanoseconds of every kind of step, by n; inf for widths that were not tried."""

    def curve(self, batch: float, context: float) -> list[float]:
        """Seconds of a forward over 1, 2, ... tokens, drafts padded as the loop pads them; see `StepCosts`.

        Whatever `batch` and `context` are: the steps were timed for the batch of the run, behind one context.
        """
        return [self.verify_ns[width] / 1e9 for width in cheapest_widths(self.verify_ns)]


@torch.no_grad()
def time_steps(
    target: Target,
    num_rows: int,
    widths: Sequence[int],
    num_context: int = 128,
    num_repeats: int = 3,
    memory: StepMemory | None = None,
) -> StepTimings:
    """Time every kind of step over chains of the given widths (rising); the fastest of the repeats counts.

    A width that was not tried takes the step of the next wider one, and drafts are padded to that width (see
    `cheapest_widths`). Overwrites the target's cache.
    memory: where an earlier process chose, only its choice is timed, and at a few widths all kinds; where
    another kind is faster there, everything is timed.
    """
    timer = _StepTimer(target, num_rows, widths, num_context)
    recalled = memory.recall() if memory else None
    if recalled:
        checked = _to_check(widths, recalled)
        chosen = dict(zip(widths, recalled, strict=True))
        timer.time({step: [w for w in widths if w in checked or chosen[w] == step] for step in timer.by_step})
        if all(timer.by_step[chosen[w]][w] <= _STILL_RIGHT * timer.least(w) < math.inf for w in widths):
            return timer.timings(recalled)
    timer.time(dict.fromkeys(timer.by_step, widths), num_repeats)
    found = [cheapest_step(timer.by_step, width) for width in widths]
    if memory:
        memory.keep(found)
    return timer.timings(found)


def _to_check(widths: Sequence[int], recalled: Sequence[str]) -> set[int]:
    """Widths to time all kinds at: some, spread evenly, and both sides of every change of the kind."""
    places = {len(widths) * part // _NUM_CHECKED for part in range(_NUM_CHECKED)}
    for place, (kind, wider) in enumerate(pairwise(recalled)):
        if kind != wider:
            places |= {place, place + 1}
    return {widths[place] for place in places}


class _StepTimer:
    """Times forwards behind one context."""

    def __init__(self, target: Target, num_rows: int, widths: Sequence[int], num_context: int) -> None:
        self._target, self._num_rows, self._widths = target, num_rows, widths
        self.by_step = {step: [math.inf] * (widths[-1] + 1) for step in target.steps.kinds}
        feed_prompts(target, num_rows, num_context)
        self._pending = torch.ones(num_rows, dtype=torch.int64, device=target.device)
        tokens = self._pending[:, None]
        self._drafts = {
            width: Draft.chain(tokens.expand(num_rows, width), torch.full_like(self._pending, width))
            for width in widths
        }

    def time(self, wanted: Mapping[str, Sequence[int]], num_repeats: int = 3) -> None:
        """Time the widths that are wanted of every kind of step, in turns; the fastest repeats count."""
        wanted = {step: widths for step, widths in wanted.items() if widths}
        # The first pass is a warm-up: it may compile.
        for step, widths in wanted.items():
            what = "compiling the target's steps" if step == "compiled" else f"warming up {step} steps"
            with self._target.steps.only(step), waiting(what, total=len(widths)) as wait:
                for width in filter(self._serves(step), widths):
                    wait.step(f"{width + 1} tokens")
                    self._target.verify(self._pending, self._drafts[width])
                    wait.advance()
            synchronize(self._target.device)
        with waiting("timing the target's forward", total=num_repeats * len(wanted), timed=True) as wait:
            for step, widths in [*wanted.items()] * num_repeats:
                wait.step(step)
                least = self.by_step[step]
                with self._target.steps.only(step):
                    for width in filter(self._serves(step), widths):
                        least[width] = min(least[width], self._spent(width))
                wait.advance()

    def least(self, width: int) -> float:
        """Nanoseconds of the fastest kind of step."""
        return min(costs[width] for costs in self.by_step.values())

    def timings(self, found: Sequence[str]) -> StepTimings:
        """What was timed, of these kinds of step for the widths that were tried."""
        steps = [found[bisect_left(self._widths, width)] for width in range(self._widths[-1] + 1)]
        spent = [self.by_step[step][width] for width, step in enumerate(steps)]
        return StepTimings(steps, spent, self.by_step)

    def _serves(self, step: str) -> Callable[[int], bool]:
        return lambda width: step != "compiled" or self._target.steps.compiles(self._num_rows, width)

    def _spent(self, width: int) -> int:
        synchronize(self._target.device)
        begin = time.perf_counter_ns()
        self._target.verify(self._pending, self._drafts[width])
        synchronize(self._target.device)
        return time.perf_counter_ns() - begin


def widths_to_time(target: Target, drafters: Iterable[Drafter]) -> list[int]:
    """Widths of drafts that must be timed for a run's arms: rising, vanilla's 0 first.

    If every width is a program of its own, these are the fixed draft sizes, and powers of two (with the
    pending token) for drafts whose size varies.
    """
    if not target.steps.by_shape:
        return list(range(_NUM_WIDTHS) if target.steps.forward is None else _WIDTHS_OF_PROGRAMS)
    drafted = {None if drafter.policy.shortens else drafter.num_drafted for drafter in drafters}
    varying = {2**power - 1 for power in range(6)} if None in drafted else set()
    return sorted({0} | varying | {number for number in drafted if number is not None})


def feed_prompts(target: Target, num_rows: int, num_context: int) -> None:
    """Begin sequences with prompts of `num_context` tokens; this compiles all programs for prompts."""
    target.begin(num_rows)
    prompt = [1 + i % (target.vocab_size - 1) for i in range(num_context)]
    target.prefill(range(num_rows), [prompt] * num_rows)
    # One prompt alone as well, as when it takes the row of a finished sequence: that is another program where
    # prompts are compiled. The first prefill allocates and compiles nothing, so two prompts follow together.
    target.prefill([0], [prompt])
    target.prefill(range(min(num_rows, 2)), [prompt] * min(num_rows, 2))


def cheapest_step(by_step: Mapping[str, Sequence[float]], width: int) -> str:
    """The simplest kind of step that no other one beats by more than noise."""
    least = min(costs[width] for costs in by_step.values())
    return next(step for step, costs in by_step.items() if costs[width] * (1 - _MIN_GAIN) <= least)


def cheapest_widths(costs: Sequence[float]) -> list[int]:
    """For drafts of n = 0, 1, ... nodes, the width at which the forward is cheapest; vanilla's 0 stays 0."""
    widths = [0][: len(costs)]
    for width in range(1, len(costs)):
        best = min(range(width, len(costs)), key=lambda other: costs[other])
        widths.append(best if costs[best] < (1 - _MIN_GAIN) * costs[width] else width)
    return widths
