"""Rounds, samples and turns: how a method does from call to call of one question, and along an output.

A memory that pays shows here: tau rises from the first round of thinking, or the first sample, to the next.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from harness.analysis import metrics, stats
from harness.store.columns import Columns, Flags, Records

WINDOW = 256
"""Output tokens of a window, as in SpecTTS-Bench's figures."""
SHAPE_WINDOW = 32
"""Output tokens of a window in which the shape of drafts is averaged: a policy adapts within a few rounds."""
Ends = tuple[float, float] | None


@dataclass(frozen=True, kw_only=True)
class CallStats:
    """One method in all calls of one number; what is not known is nan."""

    kind: Literal["round", "sample", "turn"]
    """`round`: of multi-round thinking; `sample`: of best of N; `turn`: of a conversation."""
    number: int
    """Counted from 1."""
    num_generations: int
    num_forced: int
    """Tokens that were forced, as the ends of thoughts."""
    tau: float = math.nan
    tau_ci: Ends = None
    tokens_per_s: float = math.nan
    speedup: float = math.nan
    """Ratio of totals, to vanilla in the same calls."""
    speedup_ci: Ends = None
    speedup_mean_of_rates: float = math.nan


def by_call(records: Columns, vanilla: Columns, scenario: Mapping[str, Any]) -> tuple[CallStats, ...]:
    """The calls of a method by their number; nothing where there is one call to a question.

    records: the method's; vanilla: of the same runs. scenario: the configuration of the runs' scenario.
    """
    return tuple(
        _stats(kind, number, records.subset(own), vanilla.subset(theirs))
        for kind, number, own, theirs in _groups(records, vanilla, scenario)
    )


def _groups(
    records: Columns, vanilla: Columns, scenario: Mapping[str, Any]
) -> Iterator[tuple[Literal["round", "sample", "turn"], int, Flags, Flags]]:
    turns = np.unique(records.turn)
    if len(turns) > 1:
        kind: Literal["round", "turn"] = "round" if "num_rounds" in scenario else "turn"
        for turn in turns.tolist():
            yield kind, turn + 1, records.turn == turn, vanilla.turn == turn
    # Samples are numbered over all seeds; the N of one seed come one after the other.
    num_samples = int(scenario.get("num_samples") or 1)
    for number in range(num_samples if num_samples > 1 else 0):
        yield (
            "sample",
            number + 1,
            records.sample % num_samples == number,
            vanilla.sample % num_samples == number,
        )


def _stats(
    kind: Literal["round", "sample", "turn"], number: int, records: Columns, vanilla: Columns
) -> CallStats:
    found: dict[str, Any] = {}
    if len(records.emitted):
        tau = stats.tau_of(records)
        found |= {"tau": tau.value, "tau_ci": tau.ends}
    if metrics.is_timed(records):
        found["tokens_per_s"] = metrics.tokens_per_s(records)
    ours, theirs = stats.matched(records, vanilla)
    if metrics.is_timed(ours) and metrics.is_timed(theirs):
        speedup = stats.bootstrap([stats.seconds_of(ours)], [stats.seconds_of(theirs)])
        rates = metrics.mean_of_rates(ours) / metrics.mean_of_rates(theirs)
        found |= {"speedup": speedup.value, "speedup_ci": speedup.ends, "speedup_mean_of_rates": rates}
    return CallStats(
        kind=kind,
        number=number,
        num_generations=len(records),
        num_forced=int(records.forced.sum()),
        **found,
    )


def windows(records: Records, width: int = WINDOW) -> tuple[float, ...]:
    """Untrimmed tau of the rounds that began in each window of `width` output tokens; nan in an empty one."""
    columns = Columns.of(records)
    place = columns.begins // width
    tokens, rounds = np.bincount(place, weights=columns.accepted + 1), np.bincount(place)
    return tuple(map(metrics.ratio, tokens, rounds))


@dataclass(frozen=True, kw_only=True)
class DraftShape:
    """The drafts of the rounds that began in a window of the output; nan where none did."""

    nodes: float
    """Mean number of drafted tokens."""
    levels: float
    """Mean depth of the deepest one. A tree is as wide as it has nodes per level."""


def draft_shapes(records: Records, width: int = SHAPE_WINDOW) -> tuple[DraftShape, ...]:
    """Nodes and levels of the drafts, by windows of `width` output tokens."""
    columns = Columns.of(records)
    place = columns.begins // width
    rounds = np.bincount(place)
    nodes, levels = (np.bincount(place, weights=counts) for counts in (columns.drafted, columns.depth))
    means = zip(map(metrics.ratio, nodes, rounds), map(metrics.ratio, levels, rounds), strict=True)
    return tuple(DraftShape(nodes=one, levels=other) for one, other in means)
