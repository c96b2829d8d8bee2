"""Charging: how the measured time of a batch is divided among its generations and their rounds."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from harness.ledger.quantities import ROUND_TIMES

Span = tuple[str, int]
"""The name of a stage and its nanoseconds."""


def charge(
    generations: Sequence[Any],
    entered: Sequence[Sequence[int]],
    rounds: Sequence[Sequence[int]],
    spans: Sequence[Span],
    total_ns: int,
) -> list[Any]:
    """The generations with their times.

    Every span is divided equally among the generations that took part, so that the sum of tokens over the
    sum of seconds is the throughput. entered: per prefill, the numbers of its generations. rounds: per round,
    those of the generations that ran. spans: the laps of the loop in order; none in an untimed run.
    total_ns: all of the measured time; what no span covers is divided among all.
    """
    _open_rounds(generations)
    if not spans:
        return list(generations)
    times: list[dict[str, int]] = [defaultdict(int) for _ in generations]
    prefills, running = iter(entered), iter(rounds)
    seen: dict[int, int] = defaultdict(lambda: -1)
    begun: dict[int, int] = {}
    clock, numbers = 0, list[int]()
    for name, span_ns in spans:
        if name == "prefill":
            numbers = list(next(prefills))
            begun.update(dict.fromkeys(numbers, clock))
        elif name == "draft":
            numbers = list(next(running))
            for number in numbers:
                seen[number] += 1
        clock += span_ns
        share = span_ns // len(numbers)
        for number in numbers:
            spent = times[number]
            spent["total_ns"] += share
            if name == "prefill":
                spent["prefill_ns"] += share
                spent["first_token_ns"] = clock - begun[number]
            elif name in ("draft", "observe"):
                # Learning from the outcome is the method's work as well.
                generations[number].draft_ns[seen[number]] += share
            elif name != "other":
                getattr(generations[number], f"{name}_ns")[seen[number]] += share
            if name in ("prefill", "other"):
                # Drafter updates after the last round do not count towards latency.
                spent["latency_ns"] = clock - begun[number]
    rest = total_ns - sum(spent["total_ns"] for spent in times)
    for spent in times:
        spent["total_ns"] += rest // len(times)
    return [replace(one, **spent) for one, spent in zip(generations, times, strict=True)]


def _open_rounds(generations: Sequence[Any]) -> None:
    """Give every round a time of 0 for each stage."""
    for generation in generations:
        for stage in ROUND_TIMES:
            getattr(generation, stage).extend([0] * len(generation.emitted))
