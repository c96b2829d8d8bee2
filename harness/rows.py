"""Rows: what is known of every method in every cell, replicates pooled, and of every pair of methods."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np

from harness import metrics, stats
from harness.comparable import SETTING, variants
from harness.cost_table import CostTable
from harness.headroom import headroom, settings_of, table_of
from harness.metrics import Ledger, Ties
from harness.records import LAPS_PER_ROUND, Cell, Failure, GenerationRecord, Run, VerdictKind
from harness.stats import Difference, Interval, Totals

BASELINE = "vanilla"
Ends = tuple[float, float] | None
_JSON_KEYS = (
    *("target", "task", "method", "temperature", "batch_size", "profile", "baseline", "acceptor"),
    *("tau", "tau_ci", "tokens_per_s", "latency_s", "speedup", "speedup_ci", "speedup_vs"),
    *("verdict", "roof_fraction", "num_prompts", "num_tokens", "variant"),
)
_MAX_PROBE_SHARE = 0.01


@dataclass(frozen=True, kw_only=True)
class Row:
    """What is known of one method (an arm, or a rung of the ladder) in one cell. nan: not known.

    Speedups are ratios of (sum of tokens / sum of seconds) to vanilla's on the same prompts. `_ci`: ends of
    95 % intervals. speedup_ci of vanilla is that of its first repeats against its others, aa_floor its
    half-width. speedup_vs: the same against each rung that was run. roof_fraction: tokens_per_s over what
    reading the bytes of plain decoding allows. latency_s, latency_per_token_s: as one sequence sees it.
    num_prompts: conversations (the clusters); num_tokens: of all repeats. speedup_free_drafter,
    _oracle_length, _free_and_oracle, _predicted: see `headroom`; all but the first need a cost table of the
    run's machine and target. mean_output_tokens: of a generation. split: shares of decode time; probe_share:
    of it, what reading the clock costs. variant: letter of a footnote where runs that differ are shown
    together. failures: what stopped a run of the row; partial: one did not end. lossless: False for an
    acceptor that does not claim it.
    """

    target: str
    task: str
    method: str
    decoding: str
    temperature: float
    batch_size: int
    profile: str
    baseline: str
    acceptor: str
    kind: Literal["arm", "rung"] = "arm"
    variant: str = ""
    scope: str = "conversation"
    seeds: tuple[int, ...] = ()
    forced_length: bool = False
    partial: bool = False
    failures: tuple[Failure, ...] = ()
    verdict: VerdictKind | None = None
    num_prompts: int = 0
    num_tokens: int = 0
    tau: float = math.nan
    tau_ci: Ends = None
    tokens_per_s: float = math.nan
    latency_s: float = math.nan
    latency_per_token_s: float = math.nan
    speedup: float = math.nan
    speedup_ci: Ends = None
    speedup_vs: dict[str, float] = field(default_factory=dict)
    speedup_vs_ci: dict[str, Ends] = field(default_factory=dict)
    speedup_decode_only: float = math.nan
    speedup_geometric: float = math.nan
    speedup_mean_of_rates: float = math.nan
    speedup_free_drafter: float = math.nan
    speedup_oracle_length: float = math.nan
    speedup_free_and_oracle: float = math.nan
    speedup_predicted: float = math.nan
    aa_floor: float = math.nan
    roof_fraction: float = math.nan
    mean_output_tokens: float = math.nan
    mean_baseline_tokens: float = math.nan
    looped_share: float = math.nan
    loop_overhead: float = math.nan
    probe_share: float = math.nan
    split: dict[str, float] = field(default_factory=dict)
    ties: Ties | None = None
    ledger: Ledger | None = None

    @property
    def failed(self) -> bool:
        """Whether there is no number at all."""
        return self.num_prompts == 0

    @property
    def indicative(self) -> bool:
        """Whether there are too few clusters for the interval to be trusted."""
        return 0 < self.num_prompts < stats.FEW_CLUSTERS

    @property
    def disturbed(self) -> bool:
        """Whether reading the clock costs more of a round than the protocol allows."""
        return self.probe_share > _MAX_PROBE_SHARE

    @property
    def lossless(self) -> bool:
        """False for an acceptor that does not claim it."""
        return self.verdict not in ("lossy", "forced")

    @property
    def difference(self) -> Difference | None:
        """What may be said of this method against vanilla; None for vanilla, and where nothing was timed."""
        if self.method == BASELINE or math.isnan(self.speedup):
            return None
        low, high = self.speedup_ci or (math.nan, math.nan)
        return stats.difference(Interval(self.speedup, low, high), self.aa_floor)

    @property
    def setting(self) -> tuple[Any, ...]:
        """What rows of one table share."""
        return tuple(getattr(self, name) for name in SETTING)

    @property
    def cell(self) -> tuple[Any, ...]:
        """What rows of one cell share; they may be compared with each other."""
        place = self.target, self.batch_size, self.task, self.temperature, self.decoding
        return *place, self.profile, self.baseline, self.acceptor, self.variant


class Pair(NamedTuple):
    """Two methods of one cell: how much faster `over` is than `under`. broken: void, as one of them is."""

    row: Row
    over: str
    under: str
    ratio: Interval
    difference: Difference
    broken: bool


@dataclass(frozen=True)
class _Group:
    """The comparable runs of a cell; replicates of one measurement, perhaps with different arms."""

    cell: Cell
    variant: str
    runs: list[Run]
    table: CostTable | None = None

    def methods(self) -> dict[str, Literal["arm", "rung"]]:
        """Vanilla first, then the arms and the rungs as their runs name them."""
        arms = dict.fromkeys(name for run in self.runs for name in _arms(run))
        rungs = dict.fromkeys(name for run in self.runs for name in run.manifest.rungs)
        ordered = sorted(arms, key=lambda name: name != BASELINE)
        return {**dict.fromkeys(ordered, "arm"), **dict.fromkeys(rungs, "rung")}

    def with_method(self, method: str) -> list[Run]:
        """The runs in which it was measured: only their vanilla was interleaved with it."""
        return [run for run in self.runs if any(r.arm == method for r in run.records)]


def _arms(run: Run) -> Iterable[str]:
    """Arms of the manifest; of a cell that failed before it had one, what was asked for."""
    return run.manifest.arms or run.manifest.config.get("methods") or ["(all methods)"]


def summarise(runs: Run | Sequence[Run], costs: Sequence[CostTable] = ()) -> list[Row]:
    """The rows of one run or of many. Replicates of a cell are pooled, runs that do not compare never are.

    Sorted by target, batch size, task, temperature; within a cell vanilla, arms, rungs. What failed is a row
    without numbers until the same command has measured it. costs: tables, of which a run's own is used.
    """
    return [_row(group, method) for group in _groups(runs, costs) for method in group.methods()]


def pairwise(runs: Run | Sequence[Run]) -> list[Pair]:
    """Every pair of timed methods of every cell, the later one over the earlier.

    Each is taken relative to the vanilla of its own runs; where both were in the same runs that cancels.
    """
    pairs = []
    for group in _groups(runs):
        rows = [row for name in group.methods() if not math.isnan((row := _row(group, name)).speedup)]
        floor = next((row.aa_floor for row in rows), math.nan)
        for i, under in enumerate(rows):
            for over in rows[i + 1 :]:
                ratio, difference = stats.compare(*_paired(group, over.method, under.method), floor)
                broken = "broken" in (over.verdict, under.verdict)
                pairs.append(Pair(over, over.method, under.method, ratio, difference, broken))
    return pairs


def to_json(row: Row) -> dict[str, Any]:
    """The row's part of the JSON line: JSON types, None for what is not known."""
    return {key: _plain(getattr(row, key)) for key in _JSON_KEYS}


def json_rows(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """All rows as the JSON line has them."""
    return [to_json(row) for row in rows]


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _groups(runs: Run | Sequence[Run], costs: Sequence[CostTable] = ()) -> list[_Group]:
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
    # Tables go from T = 0 up; the names of decodings do not sort that way.
    ordered = sorted(
        groups, key=lambda key: (key[0].target, key[0].batch_size, key[0].task, *key[0][3:], key)
    )
    return [_Group(*key, groups[key], table_of(groups[key][0].manifest, costs)) for key in ordered]


def _row(group: _Group, method: str) -> Row:
    runs = group.with_method(method)
    asking = runs or [run for run in group.runs if method in _arms(run) or method in run.manifest.rungs]
    records, vanilla = _records(runs, method), _records(runs, BASELINE)
    nulls = [null for run in runs for null in run.nulls]
    decoding = asking[0].manifest.config.get("decoding") or {}
    known: dict[str, Any] = {
        **group.cell._asdict(),
        "method": method,
        "kind": group.methods()[method],
        "variant": group.variant,
        "scope": asking[0].manifest.arms.get(method, {}).get("scope", "conversation"),
        "seeds": tuple(decoding.get("seeds") or ()),
        "forced_length": bool(decoding.get("ignore_end_token")),
        "partial": any(not run.finished for run in asking),
        "failures": tuple(failure for run in asking for failure in run.failures),
    }
    if not records:
        return Row(**known)
    return Row(
        **known,
        verdict=metrics.row_verdict(records, nulls),
        ties=metrics.ties(records, nulls),
        num_prompts=len({record.conversation for record in records}),
        num_tokens=sum(len(record.output_ids) for record in records),
        mean_output_tokens=metrics.mean_length(records),
        mean_baseline_tokens=metrics.mean_length(vanilla),
        looped_share=metrics.looped_share(records),
        **_acceptance(records),
        **_timing(group, method, records, vanilla),
    )


def _records(runs: Iterable[Run], method: str) -> list[GenerationRecord]:
    return [record for run in runs for record in run.records if record.arm == method]


def _acceptance(records: Sequence[GenerationRecord]) -> dict[str, Any]:
    """Fields about rounds; a rung tells none."""
    if not any(record.emitted for record in records):
        return {}
    clusters = metrics.by_conversation(records)
    emitted = [sum(sum(r.emitted) for r in group) for group in clusters.values()]
    rounds = [sum(len(r.emitted) for r in group) for group in clusters.values()]
    interval = stats.bootstrap([Totals(np.array(emitted, float), np.array(rounds, float))])
    return {"tau": interval.value, "tau_ci": interval.ends, "ledger": metrics.ledger(records)}


def _timing(
    group: _Group, method: str, records: list[GenerationRecord], vanilla: list[GenerationRecord]
) -> dict[str, Any]:
    """Fields about time; none where the clock did not count."""
    if not metrics.is_timed(records):
        return {}
    rate = metrics.tokens_per_s(records)
    found: dict[str, Any] = {
        "tokens_per_s": rate,
        "latency_s": metrics.latency_s(records),
        "latency_per_token_s": metrics.latency_per_token_s(records),
        "roof_fraction": rate / _roof(group, records),
        "split": metrics.time_split(records),
        "loop_overhead": metrics.loop_overhead(records),
        "probe_share": _probe_share(group, records),
    }
    if not metrics.is_timed(vanilla):
        return found
    floor = _against_itself(vanilla)
    speedup = Interval(1.0, floor.low, floor.high)
    if method != BASELINE:
        speedup = stats.bootstrap(*_paired(group, method, BASELINE))
    rungs = [name for name, kind in group.methods().items() if kind == "rung" and group.with_method(name)]
    against = {name: stats.bootstrap(*_paired(group, method, name)) for name in rungs}
    ours, theirs = _matched(records, vanilla)
    over, under = _totals(ours), _totals(theirs)
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


def _roof(group: _Group, records: Sequence[GenerationRecord]) -> float:
    """Most tokens per second of plain decoding of these contexts; nan where nothing was probed."""
    probes = [probe.read_bandwidth for run in group.runs for probe in run.probes]
    card = next((run.manifest.target for run in group.runs if run.manifest.target), {})
    if not probes or "step_bytes" not in card:
        return math.nan
    cache, context = card.get("cache_bytes_per_token") or 0, metrics.mean_context(records)
    bandwidth, batch_size = max(probes), group.cell.batch_size
    return metrics.roof_tokens_per_s(card["step_bytes"], cache, context, batch_size, bandwidth)


def _probe_share(group: _Group, records: Sequence[GenerationRecord]) -> float:
    """Share of decode time that goes into reading the clock; nan where its cost was not probed."""
    costs = [probe.lap_ns for run in group.runs for probe in run.probes]
    # A batch's sequences share its rounds.
    num_rounds = sum(len(record.emitted) / record.batch_size for record in records)
    if not costs or not num_rounds:
        return math.nan
    return max(costs) * LAPS_PER_ROUND * num_rounds / metrics.decode_ns(records)


def _against_itself(vanilla: list[GenerationRecord]) -> Interval:
    """Vanilla's first repeats over its later ones; nan where it ran once."""
    first, later = ([r for r in vanilla if (r.repeat == 0) == is_first] for is_first in (True, False))
    if not first or not later:
        return Interval(math.nan, math.nan, math.nan)
    over, under = _matched(first, later)
    return stats.bootstrap([_totals(over)], [_totals(under)])


def _paired(group: _Group, over: str, under: str) -> tuple[list[Totals], list[Totals]]:
    """What `stats.bootstrap` needs for the ratio of two methods' speedups, on the prompts that both had."""
    sides = []
    for method in (over, under):
        runs = group.with_method(method)
        sides.append((_records(runs, method), _records(runs, BASELINE)))
    ids = [[run.manifest.run_id for run in group.with_method(method)] for method in (over, under)]
    if ids[0] == ids[1] or BASELINE in (over, under):
        # In the same runs vanilla cancels; and vanilla as a side means that of the other side's runs.
        runs = group.with_method(under if over == BASELINE else over)
        ours, theirs = _matched(_records(runs, over), _records(runs, under))
        return [_totals(ours)], [_totals(theirs)]
    parts = [part for side in sides for part in side]
    common = set.intersection(*({metrics.place(r) for r in part} for part in parts))
    a, a_vanilla, b, b_vanilla = (_totals([r for r in part if metrics.place(r) in common]) for part in parts)
    return [a, b_vanilla], [b, a_vanilla]


def _matched(
    ours: Sequence[GenerationRecord], theirs: Sequence[GenerationRecord]
) -> tuple[list[GenerationRecord], list[GenerationRecord]]:
    """Those of places that both have."""
    common = {metrics.place(r) for r in ours} & {metrics.place(r) for r in theirs}
    first, second = ([r for r in side if metrics.place(r) in common] for side in (ours, theirs))
    return first, second


def _totals(records: Sequence[GenerationRecord]) -> Totals:
    """Tokens and seconds of each conversation, by name."""
    clusters = metrics.by_conversation(records)
    tokens = [sum(len(r.output_ids) for r in group) for group in clusters.values()]
    seconds = [sum(r.total_ns for r in group) * 1e-9 for group in clusters.values()]
    return Totals(np.array(tokens, float), np.array(seconds, float))
