"""Timing of verify steps: which kind of step is fastest for each width, and which widths to pad to.

Matrix libraries are not monotone: on some CPUs three tokens cost more than five. A draft may then be padded
to a cheaper width; its `size` says how many of its nodes are real.
"""

from __future__ import annotations

import math
import time
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import torch

from harness.drafting.draft import Draft
from harness.drafting.drafter import Drafter
from harness.system.clock import synchronize
from harness.system.progress import waiting
from harness.target.model import Target

_MIN_GAIN = 0.05
"""Padding has to save this share of a forward; smaller gains are noise."""

_NUM_WIDTHS = 33
"""Widths that are timed if one program serves any width: 0 to 32 drafted tokens."""


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
) -> StepTimings:
    """Time every kind of step over chains of the given widths (rising); the fastest of the repeats counts.

    A width that was not tried takes the step of the next wider one, and drafts are padded to that width (see
    `cheapest_widths`). Overwrites the target's cache.
    """
    by_step = {step: [math.inf] * (widths[-1] + 1) for step in target.steps.kinds}
    feed_prompts(target, num_rows, num_context)
    pending = torch.ones(num_rows, dtype=torch.int64, device=target.device)
    drafts = [
        Draft.chain(pending[:, None].expand(num_rows, width), torch.full_like(pending, width))
        for width in widths
    ]
    # The first pass is a warm-up: it may compile.
    _warm_up(target, num_rows, pending, drafts)
    with waiting("timing the target's forward", total=num_repeats * len(by_step), timed=True) as wait:
        for step, least in [*by_step.items()] * num_repeats:
            wait.step(step)
            with target.steps.only(step):
                for draft in drafts:
                    if step == "compiled" and not target.steps.compiles(num_rows, draft.width):
                        continue
                    synchronize(target.device)
                    begin = time.perf_counter_ns()
                    target.verify(pending, draft)
                    synchronize(target.device)
                    spent = time.perf_counter_ns() - begin
                    least[draft.width] = min(least[draft.width], spent)
            wait.advance()
    steps = [cheapest_step(by_step, widths[bisect_left(widths, width)]) for width in range(widths[-1] + 1)]
    return StepTimings(steps, [by_step[step][width] for width, step in enumerate(steps)], by_step)


def _warm_up(target: Target, num_rows: int, pending: torch.Tensor, drafts: Sequence[Draft]) -> None:
    """Take every kind of step over every draft once, which compiles what is not compiled yet."""
    for step in target.steps.kinds:
        served = [
            draft for draft in drafts if step != "compiled" or target.steps.compiles(num_rows, draft.width)
        ]
        what = "compiling the target's steps" if step == "compiled" else f"warming up {step} steps"
        with target.steps.only(step), waiting(what, total=len(served)) as wait:
            for draft in served:
                wait.step(f"{draft.width + 1} tokens")
                target.verify(pending, draft)
                wait.advance()
        synchronize(target.device)


def widths_to_time(target: Target, drafters: Iterable[Drafter]) -> list[int]:
    """Widths of drafts that must be timed for a run's arms: rising, vanilla's 0 first.

    If every width is a program of its own, these are the fixed draft sizes, and powers of two (with the
    pending token) for drafts whose size varies.
    """
    if not target.steps.by_shape:
        return list(range(_NUM_WIDTHS))
    drafted = {drafter.num_verified for drafter in drafters}
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
