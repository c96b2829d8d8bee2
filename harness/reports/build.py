"""Reporting: from the store to tables, figures and a page, without torch, the same bytes every time."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from harness.analysis.comparability import refuse_mixed, variants
from harness.analysis.parts.by_category import by_category
from harness.analysis.published import FOLDER, Paper, load_papers
from harness.analysis.row import Row
from harness.analysis.summary import summarise_with_pairs
from harness.config import ConfigError
from harness.costs.table import load_tables
from harness.reports import by_call, csv_files, figures, page, replication
from harness.reports.latex import latex
from harness.reports.markdown import markdown
from harness.store.integrity.paths import refuse_link
from harness.store.locations import RUNS
from harness.store.records import Run
from harness.store.run_store import load_runs
from harness.system.console import Console
from harness.system.files import write_text

TABLES = ("md", "tex", "csv", "figures")
"""What is written where no format is asked for."""
FORMATS = (*TABLES, "html")
_MAX_LISTED = 10


def build(
    roots: Sequence[Path],
    out: Path,
    console: Console,
    only: str | None = None,
    allow_mixed: bool = False,
    formats: Sequence[str] = TABLES,
    apart: bool = False,
) -> list[Row]:
    """Write the report into `out` in each of `formats`, names of `FORMATS`; the rows it shows.

    Where papers published the same cells, replication.md and replication.csv stand beside them; where
    questions have several calls, by_call.csv. roots: folders of results; a run that lies in two is counted
    once. only: pattern of run ids. allow_mixed: runs that do not compare stand side by side with footnotes.
    apart: every category of a task's prompts has rows of its own.

    Raises:
        ConfigError: there are no such runs, or they do not compare.
    """
    runs = _comparable(_choose(_merged(roots, console), roots, only), allow_mixed, apart)
    notes = variants(runs)[1]
    rows, pairs = summarise_with_pairs(runs, [table for root in roots for table in load_tables(root)])
    _make_folder(out, roots)
    papers = _papers(console)
    makers: dict[str, Callable[[], dict[str, str]]] = {
        "md": lambda: {
            "report.md": markdown(rows, pairs, notes),
            "replication.md": replication.markdown(papers, rows, runs),
        },
        "tex": lambda: {"report.tex": latex(rows, notes)},
        "csv": lambda: {
            "rows.csv": csv_files.csv(rows),
            "pairs.csv": csv_files.pairs_csv(pairs),
            "by_call.csv": by_call.csv(rows),
            "replication.csv": csv_files.csv_of(replication.table(papers, rows, runs)),
        },
        "html": lambda: {"report.html": page.document(rows, pairs, runs, notes)},
        "figures": dict,
    }
    for chosen in dict.fromkeys(formats):
        for name, text in makers[chosen]().items():
            if not text.strip():
                # No cell of a paper, or one call to every question; what an earlier report found goes.
                (out / name).unlink(missing_ok=True)
                continue
            write_text(out / name, text)
            console.note(f"wrote {out / name}")
    for path in _redraw(rows, out / "figures") if "figures" in formats else ():
        console.note(f"wrote {path}")
    return rows


def _comparable(runs: list[Run], allow_mixed: bool, apart: bool) -> list[Run]:
    if not allow_mixed:
        refuse_mixed(runs)
    return [part for run in runs for part in by_category(run)] if apart else runs


def _papers(console: Console) -> list[Paper]:
    papers = load_papers()
    if not papers:
        console.warn(f"{FOLDER}: holds no published tables, so nothing is compared with papers")
    return papers


def _make_folder(out: Path, roots: Sequence[Path]) -> None:
    if out.parent in roots:
        # The default place, which whoever made the store may have made a link to another one.
        refuse_link(out)
    out.mkdir(parents=True, exist_ok=True)


def _redraw(rows: Sequence[Row], folder: Path) -> list[Path]:
    """The figures of these rows; those of an earlier report, which they may contradict, go."""
    refuse_link(folder)
    written = figures.draw(rows, folder)
    kinds = "|".join((*figures.KINDS, figures.BATCHES, figures.USERS, figures.TEMPERATURES))
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
