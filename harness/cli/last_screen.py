"""The last screen of a benchmark: the table in 100 columns, where the rest is, and what to type next."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from harness.analysis import metrics
from harness.analysis.comparability import variants
from harness.analysis.row import Pair, Row
from harness.reports import page, tables
from harness.reports.formatting import percent
from harness.reports.markdown import markdown
from harness.store.columns import Columns
from harness.store.locations import RUNS
from harness.store.records import BASELINE, Run
from harness.system.console import Console, warn_on_error
from harness.system.files import write_text
from harness.system.progress import waiting

LATEST = "latest"
"""Folder below the results with the page and the tables of the last command."""
_REASONS = re.compile(r"disturbed for (.+? %) of the time \([^)]*\)")
_BETWEEN = 2
"""Characters between two columns."""


def show_rows(rows: Sequence[Row], runs: Sequence[Run], console: Console) -> None:
    """Print the main table of all rows, and how much of vanilla's time is prefill."""
    headers, body = tables.console_table(rows)
    # Why a block was disturbed is a sentence that would fold in every row; the report has it.
    body = [[*line[:-1], _REASONS.sub(r"disturbed \1", line[-1])] for line in body]
    headers, body, common = _without_common(headers, body)
    headers, body, left_out = _fitting(headers, body, console.rich.width)
    console.table(headers, body)
    if common:
        console.note(f"every row: {common}")
    if left_out:
        console.note(f"only in the report, for want of room: {', '.join(left_out)}")
    if shares := _prefill_shares(runs):
        shown = ", ".join(f"{percent(share)} at T = {temperature:g}" for temperature, share in shares.items())
        console.note(f"prefill is part of all times; of vanilla's it is {shown}")


def _without_common(
    headers: Sequence[str], body: Sequence[Sequence[str]]
) -> tuple[list[str], list[list[str]], str]:
    """The table without what is the same in every one of several rows, and that as text."""
    if len(body) < 2:
        return list(headers), [list(line) for line in body], ""
    common: list[str] = []
    kept = list(range(len(headers)))
    lines = [list(line) for line in body]
    for index, header in enumerate(headers):
        cells = {line[index] for line in body}
        if header == "marks":
            shared = _shared_marks([line[index] for line in body])
            for line in lines:
                line[index] = ", ".join(mark for mark in line[index].split(", ") if mark not in shared)
            common += shared
            if not any(line[index] for line in lines):
                kept.remove(index)
        elif header in ("verdict", "prompts") and len(cells) == 1:
            common.append(f"{header} {cells.pop()}")
            kept.remove(index)
    return [headers[i] for i in kept], [[line[i] for i in kept] for line in lines], ", ".join(common)


def _shared_marks(cells: Sequence[str]) -> list[str]:
    if any(cell.startswith("FAILED") for cell in cells):
        return []
    first = cells[0].split(", ")
    return [mark for mark in first if mark and all(mark in cell.split(", ") for cell in cells)]


def _fitting(
    headers: list[str], body: list[list[str]], width: int
) -> tuple[list[str], list[list[str]], list[str]]:
    """The table with as many columns as fit into `width`, the last optional one left out first."""
    left_out: list[str] = []
    widths = [max(map(len, (header, *cells))) for header, *cells in zip(headers, *body, strict=True)]
    kept = list(range(len(headers)))
    optional = [i for i in kept if headers[i].startswith("vs ") or headers[i] in ("% of roof", "prompts")]
    while optional and sum(widths[i] + _BETWEEN for i in kept) > width:
        kept.remove(gone := optional.pop())
        left_out.insert(0, headers[gone])
    return [headers[i] for i in kept], [[line[i] for i in kept] for line in body], left_out


def _prefill_shares(runs: Sequence[Run]) -> dict[float, float]:
    """The share of vanilla's time that is prefill, by temperature; nothing where nothing was timed."""
    parts: dict[float, list[Columns]] = {}
    for run in runs:
        columns = Columns.of(run.records)
        if BASELINE in columns.arms:
            own = columns.subset(columns.arm == columns.arms.index(BASELINE))
            parts.setdefault(run.manifest.cell.temperature, []).append(own)
    shares = {each: metrics.prefill_share(Columns.join(found)) for each, found in sorted(parts.items())}
    return {temperature: share for temperature, share in shares.items() if not math.isnan(share)}


def show_places(
    rows: Sequence[Row], pairs: Sequence[Pair], runs: Sequence[Run], results: Path, console: Console
) -> None:
    """Write the page and the tables of these runs, and print where they are and what can be typed next."""
    out = results / LATEST
    with warn_on_error(console, "the page"), waiting("writing the page and the tables", usual_s=5):
        out.mkdir(parents=True, exist_ok=True)
        _, notes = variants(runs)
        write_text(out / "report.md", markdown(rows, pairs, notes))
        write_text(out / "report.html", page.document(rows, pairs, runs, notes))
        console.note("")
        console.note(f"page     {out / 'report.html'}  (open it in a browser)")
        console.note(f"tables   {out / 'report.md'}")
        console.note(f"figures  {results / RUNS / runs[-1].manifest.run_id / 'figures'}")
    console.note("next:")
    for command in next_commands(rows, results):
        console.note(f"  {command}")


def next_commands(rows: Sequence[Row], results: Path) -> list[str]:
    """Three commands that follow from what was measured."""
    methods = [row for row in rows if row.kind == "arm" and row.method != BASELINE and row.speedup > 0]
    ranked = sorted(methods, key=lambda row: row.speedup, reverse=True)
    best = list(dict.fromkeys(row.method for row in ranked))[:2]
    chosen = f" method=[{','.join(best)}]" if best else ""
    where = "" if results == Path("results") else f" results={shlex.quote(str(results))}"
    stored = "" if results == Path("results") else f" --results {shlex.quote(str(results))}"
    return [
        f"python -m harness.bench ~experiment target=hub target.path=ORG/MODEL{chosen}{where}",
        f"python -m harness.bench ~experiment task=humaneval dry_run=true{chosen}{where}",
        f"python -m harness.report build --format html{stored}",
    ]
