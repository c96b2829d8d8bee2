"""Rows and pairs: the results of one method in one cell, and the comparison of two methods."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from harness.analysis import stats
from harness.analysis.comparability import SETTING
from harness.analysis.metrics import Ledger
from harness.analysis.parts.by_call import CallStats, DraftShape
from harness.analysis.serving.latencies import Serving
from harness.analysis.stats import Difference, Interval
from harness.analysis.tie_rates import Quality, Ties
from harness.store.records import BASELINE, Cell, Failure, VerdictKind

Ends = tuple[float, float] | None
_JSON_KEYS = (
    *("target", "task", "method", "temperature", "batch_size", "profile", "baseline", "acceptor"),
    *("engine", "scenario"),
    *("tau", "tau_ci", "tokens_per_s", "latency_s", "speedup", "speedup_ci", "speedup_vs"),
    *("verdict", "roof_fraction", "num_prompts", "num_tokens", "variant"),
    *("others_share", "disturbed_share", "quality"),
)
_MAX_PROBE_SHARE = 0.01
_MAX_LOOPING_SHARE = 0.2


@dataclass(frozen=True, kw_only=True)
class Row:
    """What is known of one method in one cell; numbers that are not known are nan.

    Speedups are ratios of (sum of tokens / sum of seconds) to vanilla's on the same prompts. Fields that end
    in `_ci` are the ends of 95 % intervals.
    """

    where: Cell
    method: str
    kind: Literal["arm", "rung"] = "arm"
    """Whether the method is an arm of the run or a rung of the ladder."""
    variant: str = ""
    """Letter of a footnote where runs that differ are shown together, else ""."""
    scope: str = "conversation"
    seeds: tuple[int, ...] = ()
    forced_length: bool = False
    partial: bool = False
    """Whether a run of the row did not finish."""
    failures: tuple[Failure, ...] = ()
    """What stopped runs of the row."""
    verdict: VerdictKind | None = None
    num_prompts: int = 0
    """Number of conversations, which are the clusters of the intervals."""
    num_tokens: int = 0
    """Output tokens of all repeats."""
    tau: float = math.nan
    tau_ci: Ends = None
    tokens_per_s: float = math.nan
    latency_s: float = math.nan
    """Median seconds of a sequence from entering the batch to its last token."""
    latency_per_token_s: float = math.nan
    """Seconds per output token as one sequence sees them, prefill included, pooled."""
    medians: dict[str, float] = field(default_factory=dict)
    """Medians over generations; see `harness.analysis.medians`."""
    speedup: float = math.nan
    speedup_ci: Ends = None
    """Vanilla's own is the interval of its first repeats against its later ones."""
    speedup_vs: dict[str, float] = field(default_factory=dict)
    """Speedup over each rung that was run, by name."""
    speedup_vs_ci: dict[str, Ends] = field(default_factory=dict)
    speedup_decode_only: float = math.nan
    speedup_geometric: float = math.nan
    speedup_mean_of_rates: float = math.nan
    speedup_free_drafter: float = math.nan
    """Speedup if drafting took no time (`Headroom.free_drafter`)."""
    speedup_oracle_length: float = math.nan
    """From `Headroom.oracle_length`; like the next two, it needs a cost table of machine and target."""
    speedup_free_and_oracle: float = math.nan
    speedup_predicted: float = math.nan
    aa_floor: float = math.nan
    """Half-width of vanilla's `speedup_ci`."""
    roof_fraction: float = math.nan
    """`tokens_per_s` over the most that the bandwidth allows plain decoding."""
    mean_output_tokens: float = math.nan
    """Output tokens per generation."""
    mean_baseline_tokens: float = math.nan
    """Output tokens per generation of vanilla."""
    looped_share: float = math.nan
    looping_share: float = math.nan
    """Share of the text that repeats with a period of at most 64 tokens."""
    loop_overhead: float = math.nan
    contaminated: int = 0
    """Conversations that share 13 consecutive words with a prompt that the head was trained on."""
    others_share: float = math.nan
    """Mean share of the machine's processor time that others used while the row's runs were measured."""
    disturbed_share: float = math.nan
    """Share of the time of its runs that was spent on blocks that were disturbed and stayed so; nan if no run
    recorded it."""
    disturbances: dict[str, float] = field(default_factory=dict)
    """What disturbed them, with the largest share of each cause; see `harness.system.load.disturbance`."""
    probe_share: float = math.nan
    """Share of decode time that reading the clock costs."""
    forward_s: float = math.nan
    """Mean seconds of a forward of the target over the whole batch."""
    forward_roof_fraction: float = math.nan
    """Seconds in which the bytes of a single-token step can be read, over `forward_s`."""
    round_forwards: float = math.nan
    """Seconds of a round over those of vanilla's forward."""
    energy_per_token_j: float = math.nan
    memory_bytes: dict[str, int] = field(default_factory=dict)
    """By content: weights, packed weights (copies), drafter, cache, peak.

    The cache is that of the longest sequences, allocated all at once. The peak is the device's, or on a CPU
    that of the process so far.
    """
    split: dict[str, float] = field(default_factory=dict)
    """Shares of decode time by stage."""
    quality: Quality | None = None
    """Known where the acceptor is not lossless; a lossy row without it has no numbers."""
    ties: Ties | None = None
    ledger: Ledger | None = None
    serving: Serving | None = None
    """What the streams of a server show; None of our own loop."""
    calls: tuple[CallStats, ...] = ()
    """By round, sample or turn, where a question has several calls; see `harness.analysis.parts.by_call`."""
    windows: tuple[float, ...] = ()
    """Untrimmed tau in each window of 256 output tokens."""
    draft_shapes: tuple[DraftShape, ...] = ()
    """Nodes and levels of the drafts in each window of 32 output tokens."""

    def __post_init__(self) -> None:
        if self.verdict == "lossy" and not self.failed and self.quality is None:
            raise ValueError(
                f"the row of {self.method} is lossy, and nothing says how good its output is: it must not be"
                " shown"
            )

    @property
    def failed(self) -> bool:
        """Whether the row has no number at all."""
        return self.num_prompts == 0

    @property
    def is_bad(self) -> bool:
        """Whether the row makes a command end with status 1: a run failed, or the output is not vanilla's."""
        return self.failed or bool(self.failures) or self.verdict == "broken"

    @property
    def indicative(self) -> bool:
        """Whether there are too few clusters for the interval to be trusted."""
        return 0 < self.num_prompts < stats.FEW_CLUSTERS

    @property
    def clock_heavy(self) -> bool:
        """Whether reading the clock costs more of a round than the protocol allows."""
        return self.probe_share > _MAX_PROBE_SHARE

    @property
    def looped(self) -> bool:
        """Whether more of the text is a loop than an ordinary answer has, which any method guesses easily."""
        return self.looping_share > _MAX_LOOPING_SHARE

    @property
    def disturbed(self) -> bool:
        """Whether other work on the machine, or what slowed it, can explain part of its times."""
        return self.disturbed_share > 0

    @property
    def lossless(self) -> bool:
        """False if the acceptor does not claim to be lossless."""
        return self.verdict not in ("lossy", "forced")

    @property
    def difference(self) -> Difference | None:
        """How the method compares with vanilla; None for vanilla, and if nothing was timed."""
        if self.method == BASELINE or math.isnan(self.speedup):
            return None
        low, high = self.speedup_ci or (math.nan, math.nan)
        return stats.difference(Interval(self.speedup, low, high), self.aa_floor)

    @property
    def setting(self) -> tuple[Any, ...]:
        """The fields of the cell that all rows of a table share."""
        return tuple(getattr(self.where, name) for name in SETTING)


class Pair(NamedTuple):
    """Two methods of one cell: how much faster `over` is than `under`."""

    row: Row
    """The row of `over`."""
    over: str
    under: str
    ratio: Interval
    difference: Difference
    broken: bool
    """Whether the comparison is void, because one of the methods is broken."""


def to_json(row: Row) -> dict[str, Any]:
    """The row's part of the JSON line: JSON types, None for what is not known."""
    known = {**vars(row.where), **vars(row)}
    return {key: _plain(known[key]) for key in _JSON_KEYS}


def json_rows(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """All rows as the JSON line has them."""
    return [to_json(row) for row in rows]


def _plain(value: Any) -> Any:
    if isinstance(value, Quality):
        value = dataclasses.asdict(value)
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
