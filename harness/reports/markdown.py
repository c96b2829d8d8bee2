"""The report as Markdown: per setting its tables, then the legend and the notes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from harness.analysis.batch_scaling import by_batch
from harness.analysis.row import Pair, Row
from harness.reports import by_call, formatting
from harness.reports.tables import (
    Table,
    acceptance_table,
    batches_table,
    console_table,
    ladder_table,
    memory_table,
    output_table,
    pairs_table,
    serving_table,
)
from harness.store.records import Cell

_LEFT = ("target", "task", "method", "call", "against", "verdict", "which is", "marks")


_SETTING = ("target", "batch", "profile", "baseline", "acceptor", "engine", "scenario")
"""The axes of `Row.setting`."""


_LEGEND = """\
**Speedup** is the method's tokens per second over those of vanilla on the same prompts: the sum of tokens
over the sum of seconds of whole calls, prefill included. **tau** is the number of tokens that a round
emits, the bonus token included, after the output was cut at its end; vanilla has 1. Brackets hold 95 %
intervals, from a paired bootstrap over conversations. **A/A** is half the width of that interval between
vanilla's own repeats; a speedup within it of 1, or whose interval contains 1, is `not distinguishable`. **%
of roof** compares tokens/s with what plain decoding would reach if it did nothing but read the bytes of a
step.

Marks: `indicative` means fewer than 12 conversations, and `quick` fewer prompts, tokens or repeats than the
protocol asks for. `disturbed`: what else used the machine, or slowed it, may explain a part of the times.
A row that is ~~struck out~~ has an output that is not vanilla's, which rounding does not
explain. In a `forced` row, the number of tokens kept per round was prescribed: its times are real, its text
means nothing.

**Free drafter** is the speedup if drafting took no time, and **oracle length** the speedup if every round
drafted only the tokens that it kept. **Predicted** is computed from a cost table (`python -m harness.cost`)
and the ledger, with the measured prefill. **ms / forward** is a forward of the target over the whole batch,
with the tokens that the method gives it (vanilla gives one); **its % of roof** is relative to a step that
reads the bytes for a single token. **round / vanilla's** divides a round (drafting, forward, acceptance and
commit) by vanilla's forward. On a CPU, peak memory is that of the process.

**Looped text** is the share of 8-grams that occurred earlier in the same output. **n-alpha**, for drafts
that are chains, is the rate at which a token is kept that was drafted from n guessed features, if all
tokens before it were kept. **s / sequence** is the median time from a sequence's entry into the batch to
its last token, and **ms / token** the time per token that one sequence observes. The **break-even batch**
is the batch size at which the speedup over vanilla at the same batch size falls to 1, interpolated linearly
over its logarithm."""


def _batches_heading(row: Row) -> str:
    at = row.where
    return f"{at.target}, {at.task}, T = {at.temperature:g} ({at.decoding}), {at.acceptor}: by batch"


def markdown(rows: Sequence[Row], pairs: Sequence[Pair] = (), notes: Sequence[str] = ()) -> str:
    """The whole report: per setting (target, batch size, profile, ...) its tables; then legend and notes."""
    parts = ["# Results", "", _LEGEND, ""]
    distinguish = formatting.distinguishing(rows)
    for setting, group in _by_setting(rows).items():
        own = [pair for pair in pairs if pair.row.setting == setting]
        parts += [
            f"## {_heading(group[0].where)}{formatting.escape(distinguish(group[0].where))}",
            "",
            *_constants(group),
            *_markdown_table(console_table(group)),
        ]
        for title, table in (
            ("The ladder", ladder_table(group)),
            ("As users of the server see it", serving_table(group)),
            ("Call by call", by_call.table(group)),
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
    """The sentence with the axes that the table omits because all its rows share them."""
    shown = {name for name, _ in formatting.varying(rows)} | set(_SETTING)
    constants = [
        f"{name} {formatting.escape(write(rows[0].where))}"
        for name, write in formatting.AXES
        if name not in shown
    ]
    varies = {row.where.decoding for row in rows}
    constants = [one for one in constants if len(varies) == 1 or not one.startswith("decoding ")]
    return [f"Everywhere: {', '.join(constants)}.", ""] if constants else []


def _markdown_table(table: Table) -> list[str]:
    headers, body = table
    # As on the console: the first column and the text at the end on the left, numbers on the right.
    marks = [":--" if name in _LEFT else "--:" for name in headers]
    lines = [headers, marks, *([formatting.escape(cell) for cell in row] for row in body)]
    return [*(f"| {' | '.join(line)} |" for line in lines), ""]
