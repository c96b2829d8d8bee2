"""Speedup by batch size, and the batch size at which a method stops being faster than vanilla."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import NamedTuple

from harness.analysis.row import Row
from harness.store.records import BASELINE, Cell


class BreakEven(NamedTuple):
    """The batch size at which a method's speedup over vanilla at the same batch size falls to 1."""

    batch: float | None
    """Interpolated linearly over the logarithm of the batch size; None outside the measured range."""
    text: str
    """The number, or `above N` or `below N` with the largest or smallest batch size that was measured."""


def break_even(points: Sequence[tuple[int, float]]) -> BreakEven:
    """The batch size above which the speedup stays below 1. points: pairs (batch size, speedup)."""
    ordered = sorted(points)
    if ordered[-1][1] >= 1:
        return BreakEven(None, f"above {ordered[-1][0]}")
    for (low, before), (high, after) in reversed(list(pairwise(ordered))):
        if before >= 1 > after:
            share = (before - 1) / (before - after)
            place = math.exp(math.log(low) + share * (math.log(high) - math.log(low)))
            return BreakEven(place, f"{place:.1f}")
    return BreakEven(None, f"below {ordered[0][0]}")


def by_batch(rows: Sequence[Row]) -> list[list[Row]]:
    """Groups of rows that differ only in method and batch size, with two sizes or more, sorted by size."""
    groups: dict[tuple[Cell, str], list[Row]] = {}
    for row in rows:
        if row.kind == "arm" and not row.failed:
            groups.setdefault((replace(row.where, batch_size=0), row.variant), []).append(row)
    found = [sorted(group, key=lambda row: row.where.batch_size) for group in groups.values()]
    return [group for group in found if len({row.where.batch_size for row in group}) > 1]


def curves(group: Sequence[Row]) -> dict[str, list[Row]]:
    """Rows by method, vanilla first; each method's rows in the order of `group`."""
    methods = dict.fromkeys(row.method for row in group)
    ordered = sorted(methods, key=lambda name: name != BASELINE)
    return {name: [row for row in group if row.method == name] for name in ordered}


def break_even_of(curve: Sequence[Row]) -> BreakEven | None:
    """Break-even of one method's rows; None for vanilla, without times, and if a row is broken."""
    timed = [(row.where.batch_size, row.speedup) for row in curve if math.isfinite(row.speedup)]
    if curve[0].method == BASELINE or len(timed) < 2 or any(row.verdict == "broken" for row in curve):
        return None
    return break_even(timed)
