"""Tables: rows as headers and cells of text. Pure functions, no clock and no files."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from harness.analysis.batch_scaling import break_even_of, curves
from harness.analysis.row import Pair, Row
from harness.reports import formatting
from harness.store.records import Cell

Table = tuple[list[str], list[list[str]]]
Column = tuple[str, Callable[[Row], str]]
_NUM_ALPHAS = 5
"""As many as EAGLE's tables have: 0-alpha to 4-alpha."""


def console_table(rows: Sequence[Row]) -> Table:
    """The main table: headers and cells; columns that tell cells apart only where they vary."""
    return _table(rows, [*_axes(rows), *_main_columns(rows)])


def _main_columns(rows: Sequence[Row]) -> list[Column]:
    columns: list[Column] = [
        ("method", formatting.method),
        ("tokens/s", lambda row: formatting.number(row.tokens_per_s, 1)),
        ("speedup", formatting.speedup),
        *_rung_columns(rows),
        ("tau", formatting.tau),
        ("verdict", lambda row: row.verdict or formatting.UNKNOWN),
        *_quality_columns(rows),
        ("% of roof", lambda row: formatting.percent(row.roof_fraction)),
        ("prompts", lambda row: str(row.num_prompts)),
        ("marks", formatting.marks),
    ]
    return columns


def _quality_columns(rows: Sequence[Row]) -> list[Column]:
    """How good the output is, where any row may differ from vanilla's."""
    known = [row.quality for row in rows if row.quality]
    columns: list[Column] = [
        ("agreement", lambda row: formatting.percent(row.quality.agreement if row.quality else None)),
        (
            "log-likelihood / token",
            lambda row: formatting.number(row.quality.log_likelihood if row.quality else None, 3),
        ),
    ]
    if any(math.isfinite(one.score) for one in known):
        columns.append(("score", lambda row: formatting.percent(row.quality.score if row.quality else None)))
    return columns if known else []


def _axes(rows: Sequence[Row]) -> list[Column]:
    """The columns that tell cells apart, where they vary."""
    return [(name, _of_cell(write)) for name, write in formatting.varying(rows)]


def _of_cell(write: Callable[[Cell], str]) -> Callable[[Row], str]:
    return lambda row: write(row.where)


def _rung_columns(rows: Sequence[Row]) -> list[Column]:
    rungs = dict.fromkeys(rung for row in rows for rung in row.speedup_vs)
    return [(f"vs {rung}", _versus(rung)) for rung in rungs]


def _versus(rung: str) -> Callable[[Row], str]:
    return lambda row: formatting.speedup_vs(row, rung)


def _table(rows: Sequence[Row], columns: Sequence[Column]) -> Table:
    body = []
    for row in rows:
        written = [write(row) for _, write in columns]
        body.append(formatting.strike(written) if row.verdict == "broken" else written)
    return [name for name, _ in columns], body


def ladder_table(rows: Sequence[Row]) -> Table:
    """Absolute speed, and the speedup in every way that somebody may state it."""
    columns: list[Column] = [
        *_axes(rows),
        ("method", formatting.method),
        ("tokens/s", lambda row: formatting.number(row.tokens_per_s, 1)),
        ("speedup", formatting.speedup),
        *_rung_columns(rows),
        ("decode only", lambda row: formatting.times(row.speedup_decode_only)),
        ("geometric mean", lambda row: formatting.times(row.speedup_geometric)),
        ("mean of rates", lambda row: formatting.times(row.speedup_mean_of_rates)),
        ("free drafter", lambda row: formatting.times(row.speedup_free_drafter)),
        *_cost_columns(rows),
        *_median_columns(rows),
        ("loop overhead", lambda row: formatting.percent(row.loop_overhead)),
        ("ms / forward", lambda row: formatting.number(1000 * row.forward_s, 1)),
        ("its % of roof", lambda row: formatting.percent(row.forward_roof_fraction)),
        ("round / vanilla's", lambda row: formatting.number(row.round_forwards)),
        *_load_columns(rows),
    ]
    return _table([row for row in rows if not math.isnan(row.tokens_per_s)], columns)


def _median_columns(rows: Sequence[Row]) -> list[Column]:
    """The medians that any row knows."""
    headings = {"first_token_s": "s to first token"}
    known = [name for row in rows for name, value in row.medians.items() if not math.isnan(value)]
    return [(headings[name], _median(name)) for name in headings if name in known]


def _median(name: str) -> Callable[[Row], str]:
    return lambda row: formatting.number(row.medians.get(name, math.nan), 3)


def _load_columns(rows: Sequence[Row]) -> list[Column]:
    """Who else used the machine, where a run recorded it."""
    if all(math.isnan(row.others_share) and math.isnan(row.disturbed_share) for row in rows):
        return []
    return [
        ("used by others", lambda row: formatting.percent(row.others_share)),
        ("disturbed", lambda row: formatting.percent(row.disturbed_share)),
    ]


def _cost_columns(rows: Sequence[Row]) -> list[Column]:
    """What takes a cost table to tell, where there is one."""
    if all(math.isnan(row.speedup_oracle_length) for row in rows):
        return []
    return [
        ("oracle length", lambda row: formatting.times(row.speedup_oracle_length)),
        ("free and oracle", lambda row: formatting.times(row.speedup_free_and_oracle)),
        ("predicted", lambda row: formatting.times(row.speedup_predicted)),
    ]


def serving_table(rows: Sequence[Row]) -> Table:
    """What users of a server observe, by percentile, and the rounds by its stream and by its counters."""

    def of(name: str, scale: float = 1000, digits: int = 1) -> Callable[[Row], str]:
        return lambda row: formatting.series([scale * one for one in getattr(row.serving, name)], digits)

    def value(name: str, digits: int = 2) -> Callable[[Row], str]:
        return lambda row: formatting.number(getattr(row.serving, name), digits)

    columns: list[Column] = [
        *_axes(rows),
        ("method", formatting.method),
        ("tokens/s", lambda row: formatting.number(row.tokens_per_s, 1)),
        ("tokens/s of one user", value("user_tokens_per_s", 1)),
        ("first token / ms", of("first_token")),
        ("burst gap / ms", of("burst_gap")),
        ("token / ms", of("per_token")),
        ("request / s", of("request", 1, 2)),
        ("tau of bursts", value("tau_of_bursts")),
        ("tau of counters", value("tau_of_counters")),
    ]
    served = [row for row in rows if row.serving]
    if any(row.serving and math.isfinite(row.serving.goodput) for row in served):
        columns.append(("goodput / requests/s", value("goodput")))
        columns.append(
            ("good", lambda row: formatting.percent(row.serving.good_share if row.serving else math.nan))
        )
    return _table(served, columns)


def acceptance_table(rows: Sequence[Row]) -> Table:
    """Acceptance as other tools would print it, from the same ledger."""

    def of_ledger(name: str, write: Callable[[Any], str] = formatting.number) -> Callable[[Row], str]:
        return lambda row: write(getattr(row.ledger, name))

    columns: list[Column] = [
        *_axes(rows),
        ("method", formatting.method),
        ("tau", formatting.tau),
        ("macro tau", of_ledger("macro_tau")),
        ("untrimmed tau", of_ledger("untrimmed_tau")),
        ("as EAGLE", of_ledger("as_eagle")),
        ("as vLLM", of_ledger("as_vllm")),
        ("as Spec-Bench", of_ledger("as_spec_bench")),
        ("n-alpha", lambda row: formatting.series(row.ledger.n_alpha[:_NUM_ALPHAS]) if row.ledger else ""),
        ("coverage", of_ledger("coverage", formatting.percent)),
        ("drafted", of_ledger("num_drafted", str)),
        ("wasted", of_ledger("num_wasted", str)),
        ("rounds", of_ledger("num_rounds", str)),
    ]
    return _table([row for row in rows if row.ledger], columns)


_HELD = ("weights", "packed weights", "drafter", "cache", "peak")
"""Keys of `Row.memory_bytes`."""


def memory_table(rows: Sequence[Row]) -> Table:
    """Bytes by what they hold, and joules."""

    def held(name: str) -> Callable[[Row], str]:
        return lambda row: formatting.mebibytes(row.memory_bytes.get(name))

    columns: list[Column] = [*_axes(rows), ("method", formatting.method)]
    columns += [
        (f"{name} / MiB", held(name)) for name in _HELD if any(name in row.memory_bytes for row in rows)
    ]
    if any(math.isfinite(row.energy_per_token_j) for row in rows):
        columns.append(("J / token", lambda row: formatting.number(row.energy_per_token_j)))
    return _table([row for row in rows if row.memory_bytes], columns)


def output_table(rows: Sequence[Row]) -> Table:
    """What was written: the verdict with its ties and their null, lengths, loops."""

    def null(row: Row) -> str:
        if row.ties is None or not math.isfinite(row.ties.null_rate):
            return formatting.UNKNOWN
        low, high = (1000 * end for end in row.ties.null_ci)
        return formatting.per_thousand(row.ties.null_rate) + formatting.interval((low, high))

    columns: list[Column] = [
        *_axes(rows),
        ("method", formatting.method),
        ("verdict", lambda row: row.verdict or formatting.UNKNOWN),
        ("ties / 1,000 tokens", lambda row: formatting.per_thousand(row.ties.rate if row.ties else None)),
        ("null / 1,000 tokens", null),
        ("tokens compared", lambda row: str(row.ties.num_compared) if row.ties else formatting.UNKNOWN),
        *_quality_columns(rows),
        ("mean output tokens", lambda row: formatting.number(row.mean_output_tokens, 1)),
        ("vanilla's", lambda row: formatting.number(row.mean_baseline_tokens, 1)),
        ("looped text", lambda row: formatting.percent(row.looped_share)),
    ]
    return _table([row for row in rows if not row.failed], columns)


def batches_table(group: Sequence[Row]) -> Table:
    """Rows that differ in method and batch size, by method, and where each method stops being faster."""
    columns: list[Column] = [
        ("method", formatting.method),
        ("batch", lambda row: str(row.where.batch_size)),
        ("tokens/s", lambda row: formatting.number(row.tokens_per_s, 1)),
        ("speedup", formatting.speedup),
        ("tau", formatting.tau),
        ("s / sequence", lambda row: formatting.number(row.latency_s)),
        ("ms / token", lambda row: formatting.number(1000 * row.latency_per_token_s, 1)),
        ("verdict", lambda row: row.verdict or formatting.UNKNOWN),
    ]
    headers: list[str] = []
    body: list[list[str]] = []
    for curve in curves(group).values():
        headers, lines = _table(curve, columns)
        end = break_even_of(curve)
        text = end.text if end else formatting.UNKNOWN
        body += [[*line, text if i == 0 else ""] for i, line in enumerate(lines)]
    return [*headers, "break-even batch"], body


def pairs_table(pairs: Sequence[Pair]) -> Table:
    """Every pair of methods of a cell: which is faster, and whether that may be said."""
    axes = formatting.varying([pair.row for pair in pairs])
    lettered = any(pair.row.variant for pair in pairs)
    body = []
    for pair in pairs:
        footnote = [pair.row.variant] if lettered else []
        ratio = formatting.times(pair.ratio.value) + formatting.interval(pair.ratio.ends)
        where = [write(pair.row.where) for _, write in axes]
        line = [*where, *footnote, pair.over, pair.under, ratio, pair.difference]
        body.append(formatting.strike(line) if pair.broken else line)
    names = [*(name for name, _ in axes), *["footnote"] * lettered]
    return [*names, "method", "against", "ratio", "which is"], body
