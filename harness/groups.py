"""Groups: the runs of each cell that compare, and what its statistics are taken over."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from harness import metrics
from harness.comparable import variants
from harness.records import Cell, GenerationRecord, Run
from harness.stats import Totals

BASELINE = "vanilla"


@dataclass(frozen=True)
class Group:
    """The comparable runs of a cell; replicates of one measurement, perhaps with different arms."""

    cell: Cell
    variant: str
    runs: list[Run]

    def methods(self) -> dict[str, Literal["arm", "rung"]]:
        """Vanilla first, then the arms and the rungs as their runs name them."""
        arms = dict.fromkeys(name for run in self.runs for name in arms_of(run))
        rungs = dict.fromkeys(name for run in self.runs for name in run.manifest.rungs)
        ordered = sorted(arms, key=lambda name: name != BASELINE)
        return {**dict.fromkeys(ordered, "arm"), **dict.fromkeys(rungs, "rung")}

    def with_method(self, method: str) -> list[Run]:
        """The runs in which it was measured: only their vanilla was interleaved with it."""
        return [run for run in self.runs if any(r.arm == method for r in run.records)]


def arms_of(run: Run) -> Iterable[str]:
    """Arms of the manifest; of a cell that failed before it had one, what was asked for."""
    return run.manifest.arms or run.manifest.config.get("methods") or ["(all methods)"]


def groups(runs: Run | Sequence[Run]) -> list[Group]:
    """Sorted by target, batch size, task, temperature; what `variants` leaves out is in none."""
    many = (
        [runs]
        if isinstance(runs, Run)
        else sorted(runs, key=lambda run: (run.manifest.created, run.manifest.run_id))
    )
    letters, _ = variants(many)
    found: dict[tuple[Cell, str], list[Run]] = defaultdict(list)
    for run in many:
        if run.manifest.run_id in letters:
            found[run.manifest.cell, letters[run.manifest.run_id]].append(run)
    # Tables go from T = 0 up; the names of decodings do not sort that way.
    ordered = sorted(found, key=lambda key: (key[0].target, key[0].batch_size, key[0].task, *key[0][3:], key))
    return [Group(*key, found[key]) for key in ordered]


def records_of(runs: Iterable[Run], method: str) -> list[GenerationRecord]:
    """The records of one method."""
    return [record for run in runs for record in run.records if record.arm == method]


def paired(group: Group, over: str, under: str) -> tuple[list[Totals], list[Totals]]:
    """What `stats.bootstrap` needs for the ratio of two methods' speedups, on the prompts that both had."""
    sides = []
    for method in (over, under):
        runs = group.with_method(method)
        sides.append((records_of(runs, method), records_of(runs, BASELINE)))
    ids = [[run.manifest.run_id for run in group.with_method(method)] for method in (over, under)]
    if ids[0] == ids[1] or BASELINE in (over, under):
        # In the same runs vanilla cancels; and vanilla as a side means that of the other side's runs.
        runs = group.with_method(under if over == BASELINE else over)
        ours, theirs = matched(records_of(runs, over), records_of(runs, under))
        return [totals(ours)], [totals(theirs)]
    parts = [part for side in sides for part in side]
    common = set.intersection(*({metrics.place(r) for r in part} for part in parts))
    a, a_vanilla, b, b_vanilla = (totals([r for r in part if metrics.place(r) in common]) for part in parts)
    return [a, b_vanilla], [b, a_vanilla]


def matched(
    ours: Sequence[GenerationRecord], theirs: Sequence[GenerationRecord]
) -> tuple[list[GenerationRecord], list[GenerationRecord]]:
    """Those of places that both have."""
    common = {metrics.place(r) for r in ours} & {metrics.place(r) for r in theirs}
    first, second = ([r for r in side if metrics.place(r) in common] for side in (ours, theirs))
    return first, second


def totals(records: Sequence[GenerationRecord]) -> Totals:
    """Tokens and seconds of each conversation, by name."""
    clusters = metrics.by_conversation(records)
    tokens = [sum(len(r.output_ids) for r in group) for group in clusters.values()]
    seconds = [sum(r.total_ns for r in group) * 1e-9 for group in clusters.values()]
    return Totals(np.array(tokens, float), np.array(seconds, float))
