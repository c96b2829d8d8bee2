"""Row: what is known of one method in one cell; pair: of two of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from harness.analysis import stats
from harness.analysis.comparability import SETTING
from harness.analysis.metrics import Ledger
from harness.analysis.stats import Difference, Interval
from harness.analysis.ties import Ties
from harness.store.records import BASELINE, Cell, Failure, VerdictKind

Ends = tuple[float, float] | None
_JSON_KEYS = (
    *("target", "task", "method", "temperature", "batch_size", "profile", "baseline", "acceptor"),
    *("engine", "scenario"),
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
    run's machine and target. forward_s: mean seconds of a forward of the target, over the whole batch;
    forward_roof_fraction: over what reading a single-token step's bytes takes; round_forwards: seconds of a
    round over those of vanilla's forward. memory_bytes: weights, packed weights (copies), drafter, cache (of
    the longest sequences, all allocated at once), peak (of the device; on a CPU of the process so far).
    mean_output_tokens: of a generation. split: shares of decode time; probe_share:
    of it, what reading the clock costs. variant: letter of a footnote where runs that differ are shown
    together. failures: what stopped a run of the row; partial: one did not end. lossless: False for an
    acceptor that does not claim it.
    """

    where: Cell
    method: str
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
    medians: dict[str, float] = field(default_factory=dict)
    """Medians over generations; see `harness.analysis.medians`."""
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
    forward_s: float = math.nan
    forward_roof_fraction: float = math.nan
    round_forwards: float = math.nan
    energy_per_token_j: float = math.nan
    memory_bytes: dict[str, int] = field(default_factory=dict)
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
        return tuple(getattr(self.where, name) for name in SETTING)


class Pair(NamedTuple):
    """Two methods of one cell: how much faster `over` is than `under`. broken: void, as one of them is."""

    row: Row
    over: str
    under: str
    ratio: Interval
    difference: Difference
    broken: bool


def to_json(row: Row) -> dict[str, Any]:
    """The row's part of the JSON line: JSON types, None for what is not known."""
    known = {**vars(row.where), **vars(row)}
    return {key: _plain(known[key]) for key in _JSON_KEYS}


def json_rows(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """All rows as the JSON line has them."""
    return [to_json(row) for row in rows]


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
