"""The report as Markdown: per setting its tables, then the legend and the notes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from harness.analysis.batch_scaling import by_batch
from harness.analysis.row import Pair, Row
from harness.reports import formatting
from harness.reports.tables import (
    Table,
    acceptance_table,
    batches_table,
    console_table,
    ladder_table,
    memory_table,
    output_table,
    pairs_table,
)
from harness.store.records import Cell

_LEFT = ("target", "task", "method", "against", "verdict", "which is", "marks")


_SETTING = ("target", "batch", "profile", "baseline", "acceptor", "engine", "scenario")
"""The axes of `Row.setting`."""


_LEGEND = """\
Speedup: (sum of tokens / sum of seconds) over the same of vanilla on the same prompts, whole calls,
prefill included. tau: tokens emitted a round, bonus token included, trimmed; vanilla has 1. In brackets:
95 % intervals, bootstrap over conversations, paired. A/A: half-width of that interval between vanilla's
own repeats; what lies inside it, or has 1 in its interval, is `not distinguishable`. % of roof: tokens/s
over what plain decoding could reach if it only read its bytes. `indicative`: under 12 conversations.
`disturbed`: what else used the machine, or slowed it, may explain a part of the times.
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


def _batches_heading(row: Row) -> str:
    at = row.where
    return f"{at.target}, {at.task}, T = {at.temperature:g} ({at.decoding}), {at.acceptor}: by batch"


def markdown(rows: Sequence[Row], pairs: Sequence[Pair] = (), notes: Sequence[str] = ()) -> str:
    """The whole report: per setting (target, batch size, profile, ...) its tables; then legend and notes."""
    parts = ["# Results", "", _LEGEND, ""]
    told_apart = formatting.told_apart(rows)
    for setting, group in _by_setting(rows).items():
        own = [pair for pair in pairs if pair.row.setting == setting]
        parts += [
            f"## {_heading(group[0].where)}{formatting.escape(told_apart(group[0].where))}",
            "",
            *_constants(group),
            *_markdown_table(console_table(group)),
        ]
        for title, table in (
            ("The ladder", ladder_table(group)),
            ("Acceptance in other tools' words", acceptance_table(group)),
            ("Output", output_table(group)),
            ("Memory and energy", memory_table(group)),
            ("Every pair", pairs_table(own)),
        ):
            if table[1]:
                parts += [f"### {title}", "", *_markdown_table(table)]
    for group in by_batch(rows):
        parts += [
            f"## {formatting.escape(_batches_heading(group[0]))}",
            "",
            *_markdown_table(batches_table(group)),
        ]
    if notes:
        parts += ["## Notes", "", *(f"* {formatting.escape(note)}" for note in notes), ""]
    return "\n".join(parts)


def _by_setting(rows: Iterable[Row]) -> dict[tuple[Any, ...], list[Row]]:
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(row.setting, []).append(row)
    return groups


def _heading(at: Cell) -> str:
    constants = f"profile {at.profile}, {at.baseline} baseline, {at.acceptor} acceptor"
    return formatting.escape(f"{at.target}: batch size {at.batch_size}, {constants}")


def _constants(rows: Sequence[Row]) -> list[str]:
    """What the table leaves out because all its rows share it."""
    shown = {name for name, _ in formatting.varying(rows)} | set(_SETTING)
    told = [
        f"{name} {formatting.escape(write(rows[0].where))}"
        for name, write in formatting.AXES
        if name not in shown
    ]
    varies = {row.where.decoding for row in rows}
    told = [one for one in told if len(varies) == 1 or not one.startswith("decoding ")]
    return [f"Everywhere: {', '.join(told)}.", ""] if told else []


def _markdown_table(table: Table) -> list[str]:
    headers, body = table
    # As on the console: the first column and the text at the end on the left, numbers on the right.
    marks = [":--" if name in _LEFT else "--:" for name in headers]
    lines = [headers, marks, *([formatting.escape(cell) for cell in row] for row in body)]
    return [*(f"| {' | '.join(line)} |" for line in lines), ""]
