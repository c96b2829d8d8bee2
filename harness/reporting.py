"""Reporting: from the store to tables, figures and a page, without torch, the same bytes every time."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from harness import figures, page, replay, replication, sync, tables, workspace
from harness.comparable import refuse_mixed, variants
from harness.config import ConfigError
from harness.cost_table import load_tables
from harness.diff import describe, find_run
from harness.migration import migrate
from harness.packs import compact, expand
from harness.published import load_papers
from harness.records import Run
from harness.reporters import Console
from harness.roots import RUNS, is_local, locate
from harness.row import Row
from harness.rows import summarise_with_pairs
from harness.store import load_runs

GOOD, FAILED, WRONG = 0, 1, 2
TABLES = ("md", "tex", "csv", "figures")
"""What is written where no format is asked for."""
FORMATS = (*TABLES, "html")
_UPKEEP = {
    "compact": "put the finished runs into a few archives, which are read as their folders are",
    "expand": "put packed runs back into folders of their own",
    "migrate": "write runs of older versions of the harness anew as this one writes them",
}
_MAX_LISTED = 10


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `python -m harness.report`; its exit status.

    0 good, 1 a row failed or is broken or a run could not be sent, 2 wrong usage.
    """
    given = _parser().parse_args(arguments)
    console = Console()
    try:
        if given.command in _COMMANDS:
            _COMMANDS[given.command](given, console)
            return GOOD
        if given.command == "sync":
            return GOOD if sync.run_command(given, console) else FAILED
        if given.command == "workspace":
            workspace.run_command(given, console)
            return GOOD
        roots = [locate(root) for root in given.results]
        if given.out is None and not is_local(roots[0]):
            raise ConfigError(f"--results {roots[0]}: nothing is written there; type --out FOLDER as well")
        out = given.out or roots[0] / "tables"
        rows = build(roots, out, console, given.only, given.allow_mixed, given.format)
    except (ConfigError, OSError) as error:
        console.error(error)
        return WRONG
    return FAILED if any(is_bad(row) for row in rows) else GOOD


def is_bad(row: Row) -> bool:
    """Whether a row must not pass unnoticed: a run of it failed, or our own output is not vanilla's."""
    return row.failed or bool(row.failures) or (row.verdict == "broken" and row.kind == "arm")


def _diff(given: argparse.Namespace, _: Console) -> None:
    print(describe(*(find_run(given.results / RUNS, name) for name in (given.first, given.second))))


def _compact(given: argparse.Namespace, console: Console) -> None:
    made = compact(given.results / RUNS, console.note)
    console.note(f"{len(made)} more archives; python -m harness.report expand gives the folders back")


def _expand(given: argparse.Namespace, console: Console) -> None:
    console.note(f"{expand(given.results / RUNS, console.note)} runs are folders again")


def _migrate(given: argparse.Namespace, console: Console) -> None:
    console.note(f"{migrate(given.results / RUNS, console.note)} runs were of another version")


_COMMANDS: dict[str, Callable[[argparse.Namespace, Console], None]] = {
    "replay": replay.run_command,
    "diff": _diff,
    "compact": _compact,
    "expand": _expand,
    "migrate": _migrate,
}
"""All but `build`; what they do is done or raises."""


def build(
    roots: Sequence[Path],
    out: Path,
    console: Console,
    only: str | None = None,
    allow_mixed: bool = False,
    formats: Sequence[str] = TABLES,
) -> list[Row]:
    """Write the report into `out` in each of `formats`, names of `FORMATS`; the rows it shows.

    Where papers published the same cells, replication.md and replication.csv stand beside them.

    roots: folders of results; a run that lies in two is counted once. only: pattern of run ids. allow_mixed:
    runs that do not compare stand side by side with footnotes.

    Raises:
        ConfigError: there are no such runs, or they do not compare.
    """
    runs = _choose(_merged(roots, console), roots, only)
    if not allow_mixed:
        refuse_mixed(runs)
    _, notes = variants(runs)
    rows, pairs = summarise_with_pairs(runs, [table for root in roots for table in load_tables(root)])
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


def _merged(roots: Sequence[Path], console: Console) -> list[Run]:
    """The runs of all roots; of one that lies in several the first that is finished, else the first."""
    found: dict[str, Run] = {}
    for run in (run for root in roots for run in load_runs(root / RUNS)):
        known = found.setdefault(run.manifest.run_id, run)
        if known is not run:
            chosen = run if run.finished and not known.finished else known
            found[run.manifest.run_id] = chosen
            console.note(f"{run.manifest.run_id}: in {known.folder} and {run.folder}; {chosen.folder} counts")
    return list(found.values())


def _choose(runs: Sequence[Run], roots: Sequence[Path], only: str | None) -> list[Run]:
    where = ", ".join(str(root / RUNS) for root in roots)
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
        description="What can be made of stored runs: tables, figures, a page, a tracker's runs.",
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
    command.add_argument(
        "--results",
        nargs="+",
        default=["results"],
        help="folders or URLs (s3://..., https://...) that hold runs/; several are read as one",
    )
    command.add_argument("--out", type=Path, help="folder to write into (default: RESULTS/tables)")
    command.add_argument("--only", metavar="PATTERN", help="of run ids, as in 'smollm2_135m.*'")
    command.add_argument(
        "--allow-mixed", action="store_true", help="footnote runs that differ; do not refuse"
    )
    replay.add_command(commands)
    sync.add_command(commands)
    workspace.add_command(commands)
    command = commands.add_parser(
        "diff",
        help="what differs between two runs, and what it may have done to their numbers",
        description="What differs between two runs, and what it may have done to their numbers.",
        allow_abbrev=False,
    )
    for name in ("first", "second"):
        command.add_argument(name, metavar="RUN", help="a run's id, a part of it, or its folder")
    command.add_argument("--results", type=Path, default=Path("results"), help="folder that holds runs/")
    for name, told in _UPKEEP.items():
        command = commands.add_parser(name, help=told, description=f"{told}.", allow_abbrev=False)
        command.add_argument("--results", type=Path, default=Path("results"), help="folder that holds runs/")
    return parser
