"""Rows: from runs to what is known of every method in every cell, replicates pooled, and of every pair."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np

from harness.analysis import metrics, stats
from harness.analysis.comparability import variants
from harness.analysis.disturbance import disturbance
from harness.analysis.medians import medians
from harness.analysis.parts.by_call import by_call, draft_shapes, windows
from harness.analysis.row import Pair, Row
from harness.analysis.serving.latencies import serving
from harness.analysis.stats import Interval, Totals
from harness.analysis.tie_rates import quality, row_verdict, ties
from harness.costs.headroom import headroom, settings_of, table_of
from harness.costs.table import CostTable
from harness.store.columns import Columns
from harness.store.records import BASELINE, LAPS_PER_ROUND, Cell, Failure, Run, VerdictKind

_UNJUDGED = Failure(
    "no-quality", "analysis", "the output may differ from vanilla's, and its quality was not recorded"
)
_UNKNOWN = Interval(math.nan, math.nan, math.nan)


@dataclass(frozen=True)
class _Group:
    """The comparable runs of a cell; replicates of one measurement, perhaps with different arms."""

    cell: Cell
    variant: str
    runs: list[Run]
    table: CostTable | None = None
    _chosen: dict[tuple[str, tuple[int, ...]], Columns] = field(default_factory=dict)

    @cached_property
    def methods(self) -> dict[str, Literal["arm", "rung"]]:
        """Vanilla first, then the arms and the rungs as their runs name them."""
        arms = dict.fromkeys(name for run in self.runs for name in _arms(run))
        rungs = dict.fromkeys(name for run in self.runs for name in run.manifest.rungs)
        ordered = sorted(arms, key=lambda name: name != BASELINE)
        return {**dict.fromkeys(ordered, "arm"), **dict.fromkeys(rungs, "rung")}

    @cached_property
    def _columns(self) -> Columns:
        return Columns.join([Columns.of(run.records) for run in self.runs])

    def places(self, method: str) -> tuple[int, ...]:
        """The runs in which it was measured, as indices: only their vanilla was interleaved with it."""
        return self._places.get(method, ())

    @cached_property
    def _places(self) -> dict[str, tuple[int, ...]]:
        runs = self._columns.run
        return {
            name: tuple(np.unique(runs[self._columns.arm == number]).tolist())
            for number, name in enumerate(self._columns.arms)
        }

    def with_method(self, method: str) -> list[Run]:
        """The runs in which it was measured."""
        return [self.runs[place] for place in self.places(method)]

    def records(self, method: str, interleaved_with: str) -> Columns:
        """A method's, of the runs in which another was measured as well."""
        key = method, self.places(interleaved_with)
        if key not in self._chosen:
            arms = self._columns.arms
            own = self._columns.arm == (arms.index(method) if method in arms else -1)
            self._chosen[key] = self._columns.subset(own & np.isin(self._columns.run, key[1]))
        return self._chosen[key]

    def asking(self, method: str) -> list[Run]:
        """The runs in which it was measured; where there is none, those that were to measure it."""
        return self.with_method(method) or [
            run for run in self.runs if method in _arms(run) or method in run.manifest.rungs
        ]

    def failures(self, method: str) -> tuple[Failure, ...]:
        """What stopped its runs, or the method itself: its own faults, and vanilla's."""
        relevant = ("", BASELINE, method)
        return tuple(one for run in self.asking(method) for one in run.failures if one.arm in relevant)

    def verdict(self, method: str) -> VerdictKind | None:
        """The verdict on its generations; `broken` where a fault of its own or of vanilla ended it."""
        if any(failure.arm for failure in self.failures(method)):
            return "broken"
        nulls = [null for run in self.with_method(method) for null in run.nulls]
        return row_verdict(self.records(method, method), nulls)


def _arms(run: Run) -> Iterable[str]:
    """Arms of the manifest; of a cell that failed before it had one, what was asked for."""
    return run.manifest.arms or run.manifest.config.get("methods") or ["(all methods)"]


def summarise(runs: Run | Sequence[Run], costs: Sequence[CostTable] = ()) -> list[Row]:
    """The rows of one run or of many. Replicates of a cell are pooled, runs that do not compare never are.

    Sorted by target, batch size, task, temperature; within a cell vanilla, arms, rungs. What failed is a row
    without numbers until the same command has measured it. costs: tables, of which a run's own is used.
    """
    return [_row(group, method) for group in _groups(runs, costs) for method in group.methods]


def pairwise(runs: Run | Sequence[Run]) -> list[Pair]:
    """Every pair of timed methods of every cell, the later one over the earlier.

    Each is taken relative to the vanilla of its own runs; where both were in the same runs that cancels.
    """
    return summarise_with_pairs(runs)[1]


def summarise_with_pairs(
    runs: Run | Sequence[Run], costs: Sequence[CostTable] = ()
) -> tuple[list[Row], list[Pair]]:
    """`summarise` and `pairwise` at once; the records of one cell at a time are in memory."""
    rows: list[Row] = []
    pairs: list[Pair] = []
    for group in _groups(runs, costs):
        own = [_row(group, method) for method in group.methods]
        rows += own
        pairs += _pairs(group, own)
    return rows, pairs


def _pairs(group: _Group, rows: Sequence[Row]) -> list[Pair]:
    timed = [row for row in rows if not math.isnan(row.speedup)]
    floor = next((row.aa_floor for row in timed), math.nan)
    pairs = []
    for i, under in enumerate(timed):
        for over in timed[i + 1 :]:
            ratio, difference = stats.compare(*_paired(group, over.method, under.method), floor)
            broken = "broken" in (over.verdict, under.verdict)
            pairs.append(Pair(over, over.method, under.method, ratio, difference, broken))
    return pairs


def _groups(runs: Run | Sequence[Run], costs: Sequence[CostTable] = ()) -> Iterator[_Group]:
    many = (
        [runs]
        if isinstance(runs, Run)
        else sorted(runs, key=lambda run: (run.manifest.created, run.manifest.run_id))
    )
    letters, _ = variants(many)
    groups: dict[tuple[Cell, str], list[Run]] = defaultdict(list)
    for run in many:
        if run.manifest.run_id in letters:
            groups[run.manifest.cell, letters[run.manifest.run_id]].append(run)
    for key in sorted(groups, key=lambda key: _position(*key)):
        # Of a group that was counted nothing stays.
        yield _Group(*key, groups[key], table_of(groups[key][0].manifest, costs))


def _position(cell: Cell, variant: str) -> tuple[Any, ...]:
    """Where a group stands in the tables: from T = 0 up; the names of decodings do not sort that way."""
    where = cell.target, cell.batch_size, cell.task, cell.temperature
    setting = cell.profile, cell.baseline, cell.acceptor, cell.engine, cell.scenario
    return *where, *setting, cell.decoding, variant


def _row(group: _Group, method: str) -> Row:
    runs, asking = group.with_method(method), group.asking(method)
    records, vanilla = group.records(method, method), group.records(BASELINE, method)
    nulls = [null for run in runs for null in run.nulls]
    decoding = asking[0].manifest.config.get("decoding") or {}
    known: dict[str, Any] = {
        "where": group.cell,
        "method": method,
        "kind": group.methods[method],
        "variant": group.variant,
        "scope": asking[0].manifest.arms.get(method, {}).get("scope", "conversation"),
        "contaminated": asking[0].manifest.arms.get(method, {}).get("contaminated", 0),
        "seeds": tuple(decoding.get("seeds") or ()),
        "forced_length": bool(decoding.get("ignore_end_token")),
        "partial": any(not run.finished for run in asking),
        "failures": group.failures(method),
    }
    if not len(records):
        return Row(**known)
    verdict, judged = group.verdict(method), quality(records)
    if verdict == "lossy" and judged is None:
        return Row(**{**known, "failures": (*known["failures"], _UNJUDGED)})
    return Row(
        **known,
        verdict=verdict,
        quality=judged,
        ties=ties(records, nulls),
        num_prompts=len(np.unique(records.conversation)),
        num_tokens=int(records.num_tokens.sum()),
        mean_output_tokens=metrics.mean_length(records),
        mean_baseline_tokens=metrics.mean_length(vanilla),
        looped_share=metrics.looped_share(records),
        looping_share=metrics.looping_share(records),
        memory_bytes=_memory(runs, method, records),
        serving=serving(records, (asking[0].manifest.config.get("engine") or {}).get("goodput") or {}),
        calls=by_call(records, vanilla, asking[0].manifest.config.get("scenario") or {}),
        **_acceptance(records),
        **_timing(group, method, records, vanilla),
    )


def _acceptance(records: Columns) -> dict[str, Any]:
    """Fields about rounds; a rung tells none."""
    if not len(records.emitted):
        return {}
    interval = stats.tau_of(records)
    return {
        "tau": interval.value,
        "tau_ci": interval.ends,
        "ledger": metrics.ledger(records),
        "windows": windows(records),
        "draft_shapes": draft_shapes(records),
    }


def _timing(group: _Group, method: str, records: Columns, vanilla: Columns) -> dict[str, Any]:
    """Fields about time; none where the clock did not count."""
    if not metrics.is_timed(records):
        return {}
    rate = metrics.tokens_per_s(records)
    found: dict[str, Any] = {
        "tokens_per_s": rate,
        "latency_s": metrics.latency_s(records),
        "latency_per_token_s": metrics.latency_per_token_s(records),
        "medians": medians(records),
        "roof_fraction": rate / _roof(group, records),
        **_forwards(group, records, vanilla),
        "energy_per_token_j": metrics.energy_per_token_j(records),
        "split": metrics.time_split(records),
        "loop_overhead": metrics.loop_overhead(records),
        "probe_share": _probe_share(group, records),
        **disturbance([load for run in group.with_method(method) for load in run.loads]),
    }
    if not metrics.is_timed(vanilla):
        return found
    floor = _against_itself(vanilla)
    speedup = Interval(1.0, floor.low, floor.high)
    if method != BASELINE:
        speedup = stats.bootstrap(*_paired(group, method, BASELINE))
    against = _against_rungs(group, method)
    ours, theirs = stats.matched(records, vanilla)
    over, under = stats.seconds_of(ours), stats.seconds_of(theirs)
    mine, base = (
        headroom(side, group.table, name, settings_of(group.with_method(method)[0].manifest, name))
        for side, name in ((ours, method), (theirs, BASELINE))
    )
    rate = metrics.tokens_per_s(theirs)
    return {
        **found,
        "speedup": speedup.value,
        "speedup_ci": speedup.ends,
        "speedup_vs": {name: interval.value for name, interval in against.items()},
        "speedup_vs_ci": {name: interval.ends for name, interval in against.items()},
        "speedup_decode_only": metrics.decode_tokens_per_s(ours) / metrics.decode_tokens_per_s(theirs),
        "speedup_geometric": stats.geometric_mean(over.amount / over.cost / (under.amount / under.cost)),
        "speedup_mean_of_rates": metrics.mean_of_rates(ours) / metrics.mean_of_rates(theirs),
        "speedup_free_drafter": mine.free_drafter / rate,
        "speedup_oracle_length": mine.oracle_length / rate,
        "speedup_free_and_oracle": mine.both / rate,
        "speedup_predicted": mine.predicted / base.predicted,
        "aa_floor": floor.half_width,
    }


def _against_rungs(group: _Group, method: str) -> dict[str, Interval]:
    """Speedup over each rung; unknown for one that writes something else, because it did other work."""
    rungs = [name for name, kind in group.methods.items() if kind == "rung" and group.places(name)]
    return {
        name: _UNKNOWN if group.verdict(name) == "broken" else stats.bootstrap(*_paired(group, method, name))
        for name in rungs
    }


def _roof(group: _Group, records: Columns) -> float:
    """Most tokens per second of plain decoding of these contexts; nan where nothing was probed."""
    probes = [probe.read_bandwidth for run in group.runs for probe in run.probes]
    card = next((run.manifest.target for run in group.runs if run.manifest.target), {})
    if not probes or "step_bytes" not in card:
        return math.nan
    cache, context = card.get("cache_bytes_per_token") or 0, metrics.mean_context(records)
    bandwidth, batch_size = max(probes), group.cell.batch_size
    return metrics.roof_tokens_per_s(card["step_bytes"], cache, context, batch_size, bandwidth)


def _forwards(group: _Group, records: Columns, vanilla: Columns) -> dict[str, float]:
    """What a forward of the target takes, against the roof, and a round against vanilla's forward."""
    seconds, step = metrics.forward_s(records), metrics.forward_s(vanilla)
    return {
        "forward_s": seconds,
        "forward_roof_fraction": group.cell.batch_size / _roof(group, records) / seconds,
        "round_forwards": metrics.round_s(records) / step,
    }


def _memory(runs: Sequence[Run], method: str, records: Columns) -> dict[str, int]:
    """Bytes by what they hold, as far as it was written down."""
    probed = [probe.memory for run in runs for probe in run.probes if probe.memory]
    found: dict[str, int] = {
        name: probed[-1][name] for name in ("weights", "packed weights") if probed and name in probed[-1]
    }
    if probed and method in probed[-1]:
        found["drafter"] = probed[-1][method]
    card = next((run.manifest.target for run in runs if run.manifest.target), {})
    if each := card.get("cache_bytes_per_token"):
        longest = int((records.num_prompt_tokens + records.num_tokens).max())
        found["cache"] = each * longest * int(records.batch_size.max())
    if (peak := int(records.peak_memory_bytes.max())) > 0:
        found["peak"] = peak
    return found


def _probe_share(group: _Group, records: Columns) -> float:
    """Share of decode time that goes into reading the clock; nan where its cost was not probed."""
    costs = [probe.lap_ns for run in group.runs for probe in run.probes]
    if not costs:
        return math.nan
    return max(costs) * 1e-9 * LAPS_PER_ROUND / metrics.round_s(records)


def _against_itself(vanilla: Columns) -> Interval:
    """Vanilla's first repeats over its later ones; nan where it ran once."""
    first, later = (vanilla.subset((vanilla.repeat == 0) == is_first) for is_first in (True, False))
    if not len(first) or not len(later):
        return _UNKNOWN
    over, under = stats.matched(first, later)
    return stats.bootstrap([stats.seconds_of(over)], [stats.seconds_of(under)])


def _paired(group: _Group, over: str, under: str) -> tuple[list[Totals], list[Totals]]:
    """What `stats.bootstrap` needs for the ratio of two methods' speedups, on the prompts that both had."""
    if group.places(over) == group.places(under) or BASELINE in (over, under):
        # In the same runs vanilla cancels; and vanilla as a side means that of the other side's runs.
        where = under if over == BASELINE else over
        ours, theirs = stats.matched(group.records(over, where), group.records(under, where))
        return [stats.seconds_of(ours)], [stats.seconds_of(theirs)]
    sides = (group.records(name, where) for where in (over, under) for name in (where, BASELINE))
    parts = stats.matched(*sides)
    a, a_vanilla, b, b_vanilla = map(stats.seconds_of, parts)
    return [a, b_vanilla], [b, a_vanilla]
