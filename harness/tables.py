"""Tables: rows as text for the console, Markdown, LaTeX and CSV. Pure functions, no clock and no files."""

from __future__ import annotations

import csv as csv_format
import dataclasses
import io
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from harness import cells
from harness.batches import break_even_of, by_batch, curves
from harness.latex import latex
from harness.row import Pair, Row

__all__ = ["console_table", "csv", "csv_of", "latex", "markdown", "pairs_csv", "pairs_table"]

Table = tuple[list[str], list[list[str]]]
Column = tuple[str, Callable[[Row], str]]
_LEFT = ("target", "task", "method", "against", "verdict", "which is", "marks")
_NUM_ALPHAS = 5
"""As many as EAGLE's tables have: 0-alpha to 4-alpha."""
_SETTING = ("target", "batch", "profile", "baseline", "acceptor")
"""The axes of `Row.setting`."""
_LEGEND = """\
Speedup: (sum of tokens / sum of seconds) over the same of vanilla on the same prompts, whole calls,
prefill included. tau: tokens emitted a round, bonus token included, trimmed; vanilla has 1. In brackets:
95 % intervals, bootstrap over conversations, paired. A/A: half-width of that interval between vanilla's
own repeats; what lies inside it, or has 1 in its interval, is `not distinguishable`. % of roof: tokens/s
over what plain decoding could reach if it only read its bytes. `indicative`: under 12 conversations.
`quick`: fewer prompts, tokens or repeats than the protocol asks for. ~~Struck out~~: the output is not
vanilla's and rounding does not explain it. `forced`: how many tokens a round keeps was given, not found: the
time is real, the text means nothing. Free drafter: the speedup if drafting took no time;
oracle length: if every round drafted just what it kept; predicted: by a cost table (`python -m harness.cost`)
and the ledger alone, prefill as measured. Forward: of the target, as the method has it (vanilla's is one
token), over the whole batch; its share of the roof: of a step that only reads a single token's bytes; round:
drafting, forward, acceptance and commit, over vanilla's forward. Peak memory on a CPU is the process's.
Looped
text: share of 8-grams that stood in the same output before. n-alpha: of chains, how often the token is kept
that n guessed features went into, if all before it were. s / sequence: median from entering the batch to the
last token; ms / token: as one sequence sees it. Break-even batch: where the speedup over vanilla at the same
batch falls to 1, by a straight line over the logarithm of the batch."""


def console_table(rows: Sequence[Row]) -> Table:
    """The main table: headers and cells; columns that tell cells apart only where they vary."""
    return _table(rows, [*cells.varying(rows), *_main_columns(rows)])


def _main_columns(rows: Sequence[Row]) -> list[Column]:
    columns: list[Column] = [
        ("method", cells.method),
        ("tokens/s", lambda row: cells.number(row.tokens_per_s, 1)),
        ("speedup", cells.speedup),
        *_rung_columns(rows),
        ("tau", cells.tau),
        ("verdict", lambda row: row.verdict or cells.UNKNOWN),
        ("% of roof", lambda row: cells.percent(row.roof_fraction)),
        ("prompts", lambda row: str(row.num_prompts)),
        ("marks", cells.marks),
    ]
    return columns


def _rung_columns(rows: Sequence[Row]) -> list[Column]:
    rungs = dict.fromkeys(rung for row in rows for rung in row.speedup_vs)
    return [(f"vs {rung}", _versus(rung)) for rung in rungs]


def _versus(rung: str) -> Callable[[Row], str]:
    return lambda row: cells.speedup_vs(row, rung)


def _table(rows: Sequence[Row], columns: Sequence[Column]) -> Table:
    body = []
    for row in rows:
        written = [write(row) for _, write in columns]
        body.append(cells.strike(written) if row.verdict == "broken" else written)
    return [name for name, _ in columns], body


def _ladder(rows: Sequence[Row]) -> Table:
    """Absolute speed, and the speedup in every way that somebody may state it."""
    columns: list[Column] = [
        *cells.varying(rows),
        ("method", cells.method),
        ("tokens/s", lambda row: cells.number(row.tokens_per_s, 1)),
        ("speedup", cells.speedup),
        *_rung_columns(rows),
        ("decode only", lambda row: cells.times(row.speedup_decode_only)),
        ("geometric mean", lambda row: cells.times(row.speedup_geometric)),
        ("mean of rates", lambda row: cells.times(row.speedup_mean_of_rates)),
        ("free drafter", lambda row: cells.times(row.speedup_free_drafter)),
        *_cost_columns(rows),
        ("loop overhead", lambda row: cells.percent(row.loop_overhead)),
        ("ms / forward", lambda row: cells.number(1000 * row.forward_s, 1)),
        ("its % of roof", lambda row: cells.percent(row.forward_roof_fraction)),
        ("round / vanilla's", lambda row: cells.number(row.round_forwards)),
    ]
    return _table([row for row in rows if not math.isnan(row.tokens_per_s)], columns)


def _cost_columns(rows: Sequence[Row]) -> list[Column]:
    """What takes a cost table to tell, where there is one."""
    if all(math.isnan(row.speedup_oracle_length) for row in rows):
        return []
    return [
        ("oracle length", lambda row: cells.times(row.speedup_oracle_length)),
        ("free and oracle", lambda row: cells.times(row.speedup_free_and_oracle)),
        ("predicted", lambda row: cells.times(row.speedup_predicted)),
    ]


def _acceptance(rows: Sequence[Row]) -> Table:
    """Acceptance as other tools would print it, from the same ledger."""

    def told(name: str, write: Callable[[Any], str] = cells.number) -> Callable[[Row], str]:
        return lambda row: write(getattr(row.ledger, name))

    columns: list[Column] = [
        *cells.varying(rows),
        ("method", cells.method),
        ("tau", cells.tau),
        ("macro tau", told("macro_tau")),
        ("untrimmed tau", told("untrimmed_tau")),
        ("as EAGLE", told("as_eagle")),
        ("as vLLM", told("as_vllm")),
        ("as Spec-Bench", told("as_spec_bench")),
        ("n-alpha", lambda row: cells.series(row.ledger.n_alpha[:_NUM_ALPHAS]) if row.ledger else ""),
        ("coverage", told("coverage", cells.percent)),
        ("drafted", told("num_drafted", str)),
        ("wasted", told("num_wasted", str)),
        ("rounds", told("num_rounds", str)),
    ]
    return _table([row for row in rows if row.ledger], columns)


_HELD = ("weights", "packed weights", "drafter", "cache", "peak")
"""Keys of `Row.memory_bytes`."""


def _memory(rows: Sequence[Row]) -> Table:
    """Bytes by what they hold, and joules."""

    def held(name: str) -> Callable[[Row], str]:
        return lambda row: cells.mebibytes(row.memory_bytes.get(name))

    columns: list[Column] = [*cells.varying(rows), ("method", cells.method)]
    columns += [
        (f"{name} / MiB", held(name)) for name in _HELD if any(name in row.memory_bytes for row in rows)
    ]
    if any(math.isfinite(row.energy_per_token_j) for row in rows):
        columns.append(("J / token", lambda row: cells.number(row.energy_per_token_j)))
    return _table([row for row in rows if row.memory_bytes], columns)


def _output(rows: Sequence[Row]) -> Table:
    """What was written: the verdict with its ties and their null, lengths, loops."""

    def null(row: Row) -> str:
        if row.ties is None or not math.isfinite(row.ties.null_rate):
            return cells.UNKNOWN
        low, high = (1000 * end for end in row.ties.null_ci)
        return cells.per_thousand(row.ties.null_rate) + cells.interval((low, high))

    columns: list[Column] = [
        *cells.varying(rows),
        ("method", cells.method),
        ("verdict", lambda row: row.verdict or cells.UNKNOWN),
        ("ties / 1,000 tokens", lambda row: cells.per_thousand(row.ties.rate if row.ties else None)),
        ("null / 1,000 tokens", null),
        ("tokens compared", lambda row: str(row.ties.num_compared) if row.ties else cells.UNKNOWN),
        ("mean output tokens", lambda row: cells.number(row.mean_output_tokens, 1)),
        ("vanilla's", lambda row: cells.number(row.mean_baseline_tokens, 1)),
        ("looped text", lambda row: cells.percent(row.looped_share)),
    ]
    return _table([row for row in rows if not row.failed], columns)


def batches_table(group: Sequence[Row]) -> Table:
    """Of rows that differ in method and batch: each method by batch, and where it ceases to pay."""
    columns: list[Column] = [
        ("method", cells.method),
        ("batch", lambda row: str(row.batch_size)),
        ("tokens/s", lambda row: cells.number(row.tokens_per_s, 1)),
        ("speedup", cells.speedup),
        ("tau", cells.tau),
        ("s / sequence", lambda row: cells.number(row.latency_s)),
        ("ms / token", lambda row: cells.number(1000 * row.latency_per_token_s, 1)),
        ("verdict", lambda row: row.verdict or cells.UNKNOWN),
    ]
    headers: list[str] = []
    body: list[list[str]] = []
    for curve in curves(group).values():
        headers, lines = _table(curve, columns)
        end = break_even_of(curve)
        told = end.told if end else cells.UNKNOWN
        body += [[*line, told if i == 0 else ""] for i, line in enumerate(lines)]
    return [*headers, "break-even batch"], body


def _batches_heading(row: Row) -> str:
    return f"{row.target}, {row.task}, T = {row.temperature:g} ({row.decoding}), {row.acceptor}: by batch"


def pairs_table(pairs: Sequence[Pair]) -> Table:
    """Every pair of methods of a cell: which is faster, and whether that may be said."""
    axes = cells.varying([pair.row for pair in pairs])
    lettered = any(pair.row.variant for pair in pairs)
    body = []
    for pair in pairs:
        footnote = [pair.row.variant] if lettered else []
        ratio = cells.times(pair.ratio.value) + cells.interval(pair.ratio.ends)
        where = [write(pair.row) for _, write in axes]
        line = [*where, *footnote, pair.over, pair.under, ratio, pair.difference]
        body.append(cells.strike(line) if pair.broken else line)
    names = [*(name for name, _ in axes), *["footnote"] * lettered]
    return [*names, "method", "against", "ratio", "which is"], body


def markdown(rows: Sequence[Row], pairs: Sequence[Pair] = (), notes: Sequence[str] = ()) -> str:
    """The whole report: per setting (target, batch size, profile, ...) its tables; then legend and notes."""
    parts = ["# Results", "", _LEGEND, ""]
    for setting, group in _by_setting(rows).items():
        own = [pair for pair in pairs if pair.row.setting == setting]
        parts += [f"## {_heading(setting)}", "", *_constants(group), *_markdown_table(console_table(group))]
        for title, table in (
            ("The ladder", _ladder(group)),
            ("Acceptance in other tools' words", _acceptance(group)),
            ("Output", _output(group)),
            ("Memory and energy", _memory(group)),
            ("Every pair", pairs_table(own)),
        ):
            if table[1]:
                parts += [f"### {title}", "", *_markdown_table(table)]
    for group in by_batch(rows):
        parts += [
            f"## {cells.escape(_batches_heading(group[0]))}",
            "",
            *_markdown_table(batches_table(group)),
        ]
    if notes:
        parts += ["## Notes", "", *(f"* {cells.escape(note)}" for note in notes), ""]
    return "\n".join(parts)


def _by_setting(rows: Iterable[Row]) -> dict[tuple[Any, ...], list[Row]]:
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(row.setting, []).append(row)
    return groups


def _heading(setting: tuple[Any, ...]) -> str:
    target, batch, profile, baseline, acceptor = (cells.escape(str(part)) for part in setting)
    return f"{target}: batch size {batch}, profile {profile}, {baseline} baseline, {acceptor} acceptor"


def _constants(rows: Sequence[Row]) -> list[str]:
    """What the table leaves out because all its rows share it."""
    shown = {name for name, _ in cells.varying(rows)} | set(_SETTING)
    told = [f"{name} {cells.escape(write(rows[0]))}" for name, write in cells.AXES if name not in shown]
    varies = {row.decoding for row in rows}
    told = [one for one in told if len(varies) == 1 or not one.startswith("decoding ")]
    return [f"Everywhere: {', '.join(told)}.", ""] if told else []


def _markdown_table(table: Table) -> list[str]:
    headers, body = table
    # As on the console: the first column and the text at the end on the left, numbers on the right.
    marks = [":--" if name in _LEFT else "--:" for name in headers]
    lines = [headers, marks, *([cells.escape(cell) for cell in row] for row in body)]
    return [*(f"| {' | '.join(line)} |" for line in lines), ""]


def csv(rows: Sequence[Row]) -> str:
    """Every raw number of every row; an empty cell where it is not known."""
    return csv_of([{**_flat(dataclasses.asdict(row)), "failed": row.failed} for row in rows])


def pairs_csv(pairs: Sequence[Pair]) -> str:
    """Every pair of methods with its raw numbers."""
    return csv_of(
        [
            {
                **{name: write(pair.row) for name, write in cells.AXES},
                "variant": pair.row.variant,
                "over": pair.over,
                "under": pair.under,
                "ratio": pair.ratio.value,
                "ratio_low": pair.ratio.low,
                "ratio_high": pair.ratio.high,
                "difference": pair.difference,
                "broken": pair.broken,
            }
            for pair in pairs
        ]
    )


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested fields as `parent.child`, intervals as `_low` and `_high`, lists as JSON."""
    result: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            result |= _flat(value, f"{name}.")
        elif prefix.startswith("speedup_vs_ci") or key.endswith("_ci"):
            result[f"{name}_low"], result[f"{name}_high"] = value or ("", "")
        elif key == "failures":
            result[name] = "; ".join(cells.failure(one) for one in value)
        elif isinstance(value, (tuple, list)):
            result[name] = json.dumps(
                [None if isinstance(one, float) and math.isnan(one) else one for one in value]
            )
        elif key not in ("ties", "ledger"):
            result[name] = value
    return result


def csv_of(lines: Sequence[Mapping[str, Any]]) -> str:
    """Lines that may lack some of the columns; an empty cell for what is not known."""
    names = dict.fromkeys(name for line in lines for name in line)
    text = io.StringIO()
    writer = csv_format.DictWriter(text, list(names), restval="", lineterminator="\n")
    writer.writeheader()
    for line in lines:
        writer.writerow({name: _raw(value) for name, value in line.items()})
    return text.getvalue()


def _raw(value: Any) -> Any:
    return "" if value is None or (isinstance(value, float) and not math.isfinite(value)) else value
