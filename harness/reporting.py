"""Reporting: from the store to tables, figures and a page, without torch, the same bytes every time."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from harness import figures, page, replay, replication, tables
from harness.comparable import refuse_mixed, variants
from harness.config import ConfigError
from harness.cost_table import load_tables
from harness.diff import describe, find_run
from harness.published import load_papers
from harness.records import Run
from harness.reporters import Console
from harness.row import Row
from harness.rows import summarise_with_pairs
from harness.store import load_runs

GOOD, FAILED, WRONG = 0, 1, 2
TABLES = ("md", "tex", "csv", "figures")
"""What is written where no format is asked for."""
FORMATS = (*TABLES, "html")
_MAX_LISTED = 10


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `python -m harness.report`; its exit status: 0 good, 1 a row failed or is broken, 2 wrong usage."""
    given = _parser().parse_args(arguments)
    console = Console()
    try:
        if given.command == "replay":
            replay.run_command(given, console)
            return GOOD
        if given.command == "diff":
            print(describe(*(find_run(given.results / "runs", name) for name in (given.first, given.second))))
            return GOOD
        rows = build(
            given.results,
            given.out or given.results / "tables",
            console,
            given.only,
            given.allow_mixed,
            given.format,
        )
    except (ConfigError, OSError) as error:
        console.error(error)
        return WRONG
    return FAILED if any(is_bad(row) for row in rows) else GOOD


def is_bad(row: Row) -> bool:
    """Whether a row must not pass unnoticed: a run of it failed, or our own output is not vanilla's."""
    return row.failed or bool(row.failures) or (row.verdict == "broken" and row.kind == "arm")


def build(
    results: Path,
    out: Path,
    console: Console,
    only: str | None = None,
    allow_mixed: bool = False,
    formats: Sequence[str] = TABLES,
) -> list[Row]:
    """Write the report into `out` in each of `formats`, names of `FORMATS`; the rows it shows.

    Where papers published the same cells, replication.md and replication.csv stand beside them.

    only: pattern of run ids. allow_mixed: runs that do not compare stand side by side with footnotes.

    Raises:
        ConfigError: there are no such runs, or they do not compare.
    """
    runs = _choose(load_runs(results / "runs"), results / "runs", only)
    if not allow_mixed:
        refuse_mixed(runs)
    _, notes = variants(runs)
    rows, pairs = summarise_with_pairs(runs, load_tables(results))
    out.mkdir(parents=True, exist_ok=True)
    papers = load_papers()
    makers: dict[str, Callable[[], dict[str, str]]] = {
        "md": lambda: {
            "report.md": tables.markdown(rows, pairs, notes),
            "replication.md": replication.markdown(papers, rows, runs),
        },
        "tex": lambda: {"report.tex": tables.latex(rows, notes)},
        "csv": lambda: {
            "rows.csv": tables.csv(rows),
            "pairs.csv": tables.pairs_csv(pairs),
            "replication.csv": tables.csv_of(replication.table(papers, rows, runs)),
        },
        "html": lambda: {"report.html": page.document(rows, pairs, runs, notes)},
        "figures": dict,
    }
    for chosen in dict.fromkeys(formats):
        for name, text in makers[chosen]().items():
            if not text.strip():
                # Nothing that a paper measured as well; what an earlier report found goes.
                (out / name).unlink(missing_ok=True)
                continue
            (out / name).write_text(text, encoding="utf-8", newline="\n")
            console.note(f"wrote {out / name}")
    for path in _redraw(rows, out / "figures") if "figures" in formats else ():
        console.note(f"wrote {path}")
    return rows


def _redraw(rows: Sequence[Row], folder: Path) -> list[Path]:
    """The figures of these rows; those of an earlier report, which they may contradict, go."""
    written = figures.draw(rows, folder)
    kinds = "|".join((*figures.KINDS, figures.BATCHES))
    for path in folder.glob("*") if folder.is_dir() else ():
        if path not in written and re.fullmatch(rf".+-({kinds})\.(png|svg)", path.name):
            path.unlink()
    return written


def _choose(runs: Sequence[Run], where: Path, only: str | None) -> list[Run]:
    chosen = [run for run in runs if only is None or fnmatchcase(run.manifest.run_id, only)]
    if chosen:
        return chosen
    if not runs:
        raise ConfigError(f"{where}: holds no runs. `python -m harness.bench` measures some.")
    known = [run.manifest.run_id for run in runs]
    more = f" and {len(known) - _MAX_LISTED} more" if len(known) > _MAX_LISTED else ""
    raise ConfigError(
        f"--only {only!r} matches none of the {len(known)} runs in {where}; * stands for anything."
        f" There are {', '.join(known[:_MAX_LISTED])}{more}."
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m harness.report",
        description="Tables and figures from stored runs, and what differs between two of them.",
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    command = commands.add_parser(
        "build", help="write tables, figures or the HTML report of all stored runs", allow_abbrev=False
    )
    command.add_argument(
        "--format",
        nargs="+",
        choices=FORMATS,
        default=TABLES,
        help=f"html is one page that opens without a network; {' '.join(TABLES)} unless given",
    )
    command.add_argument("--results", type=Path, default=Path("results"), help="folder that holds runs/")
    command.add_argument("--out", type=Path, help="folder to write into (default: RESULTS/tables)")
    command.add_argument("--only", metavar="PATTERN", help="of run ids, as in 'smollm2_135m.*'")
    command.add_argument(
        "--allow-mixed", action="store_true", help="footnote runs that differ; do not refuse"
    )
    replay.add_command(commands)
    command = commands.add_parser(
        "diff",
        help="what differs between two runs, and what it may have done to their numbers",
        description="What differs between two runs, and what it may have done to their numbers.",
        allow_abbrev=False,
    )
    for name in ("first", "second"):
        command.add_argument(name, metavar="RUN", help="a run's id, a part of it, or its folder")
    command.add_argument("--results", type=Path, default=Path("results"), help="folder that holds runs/")
    return parser
