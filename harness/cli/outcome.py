"""The end of a command: from the outcomes of its jobs to one table, one JSON line and the exit status."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig
from typing_extensions import override

from harness.analysis.comparability import variants
from harness.cli.job_files import JOB
from harness.store.records import Run
from harness.store.run_store import load_run
from harness.system.console import Console
from harness.system.files import print_json, write_json
from harness.system.processes import is_follower

if TYPE_CHECKING:
    from harness.analysis.row import Pair, Row

OUTCOME = "outcome.json"
"""File that a job writes into its Hydra folder: `run_dirs`, `errors` and `status`."""
GOOD, FAILED, WRONG = 0, 1, 2
"""Exit statuses: success, a failed run or broken verdict, a wrong command line or configuration."""

_UNWRITTEN: dict[Path, dict[str, Any]] = {}
"""Outcomes of this process that could not be written, by the path of the file."""


class Collect(Callback):
    """Ends the process with one table of everything it measured, the JSON line and the exit status.

    Hydra passes the results of jobs to callbacks only, and turns exceptions of callbacks into warnings. Hence
    this callback exits by SystemExit, which is no `Exception`.
    """

    @override
    def on_run_end(self, config: DictConfig, **_: Any) -> None:
        """Report a single run. One that raised has no outcome, and Hydra re-raises its exception."""
        outcome = Path(config.hydra.run.dir) / OUTCOME
        if outcome.is_file() or outcome.resolve() in _UNWRITTEN:
            self._end([outcome])

    @override
    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        """Report all jobs of a sweep, in the order of their numbers."""
        self.end_sweep(Path(config.hydra.sweep.dir))

    def end_sweep(self, folder: Path) -> None:
        """Report all jobs in the folder of a sweep."""
        jobs = sorted(folder.glob(f"*/{JOB}"), key=lambda path: _number(path.parent))
        self._end([job.parent / OUTCOME for job in jobs])

    def _end(self, outcomes: Iterable[Path]) -> None:
        if is_follower():
            return
        console = Console()
        try:
            with console.watching():
                status = _report([_read(path) for path in outcomes], console)
        except Exception as error:
            console.error(error)
            raise SystemExit(FAILED) from error
        raise SystemExit(status)


def _number(folder: Path) -> tuple[int, str]:
    return (int(folder.name), "") if folder.name.isdigit() else (sys.maxsize, folder.name)


def hand_over(folder: Path, outcome: dict[str, Any]) -> None:
    """Keep the outcome of a job for `Collect`: in the job's folder, or in memory if the disk is full."""
    path = folder / OUTCOME
    try:
        write_json(path, outcome)
    except OSError as error:
        errors = [*outcome["errors"], f"{path}: cannot be written ({error.strerror})"]
        _UNWRITTEN[path.resolve()] = {**outcome, "errors": errors, "status": outcome["status"] or FAILED}


def _read(path: Path) -> dict[str, Any]:
    if path.resolve() in _UNWRITTEN:
        return _UNWRITTEN[path.resolve()]
    if not path.is_file():
        return _without_outcome(path.parent, "the job ended without an outcome")
    try:
        outcome: dict[str, Any] = json.loads(path.read_bytes())
        if missing := {"run_dirs", "errors", "status"} - outcome.keys():
            raise KeyError(*missing)
    except (ValueError, KeyError, AttributeError, RecursionError) as error:
        return _without_outcome(path.parent, f"the outcome of the job cannot be read ({error!r})")
    return outcome


def _without_outcome(folder: Path, why: str) -> dict[str, Any]:
    return {"run_dirs": [], "errors": [f"{folder}: {why}"], "status": FAILED}


def _report(outcomes: list[dict[str, Any]], console: Console) -> int:
    """Print the table and the JSON line. Returns the exit status; if that is WRONG, there is no JSON line."""
    from harness.analysis import summary
    from harness.analysis.row import json_rows
    from harness.costs.table import load_tables

    status: int = max((outcome["status"] for outcome in outcomes), default=FAILED)
    folders = list(dict.fromkeys(folder for outcome in outcomes for folder in outcome["run_dirs"]))
    errors = [error for outcome in outcomes for error in outcome["errors"]]
    runs: list[Run] = []
    rows: list[Row] = []
    pairs: list[Pair] = []
    for folder in folders:
        try:
            runs.append(load_run(Path(folder)))
        except Exception as error:
            errors.append(f"{folder}: left out of the table: {error}")
    try:
        results = dict.fromkeys(Path(folder).parents[1] for folder in folders)
        costs = [table for folder in results for table in load_tables(folder)]
        rows, pairs = summary.summarise_with_pairs(runs, costs)
    except Exception as error:
        errors.append(f"the table cannot be made: {type(error).__name__}: {error}")
    document: dict[str, Any] = {"rows": json_rows(rows), "run_dirs": folders}
    if any("cells" in outcome for outcome in outcomes):
        document["cells"] = [cell for outcome in outcomes for cell in outcome.get("cells", [])]
    # A person reads the end of the screen, and a program the last line of a file or a pipe.
    if status != WRONG and sys.stdout.isatty():
        print_json(document, allow_nan=False)
    errors += _show(rows, pairs, runs, document, console)
    for text in errors:
        console.error(text)
    if status == WRONG:
        return status
    if not sys.stdout.isatty():
        print_json(document, allow_nan=False)
    return FAILED if errors or any(row.is_bad for row in rows) else status


def _show(
    rows: list[Row], pairs: list[Pair], runs: list[Run], document: dict[str, Any], console: Console
) -> list[str]:
    """Print everything for people; what of it cannot be made. document: the one of the JSON line."""
    from harness.cli import last_screen

    surveyed = document.get("cells", [])
    try:
        if rows:
            last_screen.show_rows(rows, runs, console)
        for note in variants(runs)[1]:
            console.note(note)
        if surveyed:
            from harness.benchmark.dry_run import survey

            console.table(*survey.table(surveyed))
            for note in survey.notes(surveyed):
                console.note(note)
        if any(not row.failed for row in rows):
            last_screen.show_places(rows, pairs, runs, Path(document["run_dirs"][0]).parents[1], console)
    except Exception as error:
        return [f"the table cannot be made: {type(error).__name__}: {error}"]
    return []
