"""The command `python -m harness.report`: its parser and its sub-commands."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from harness.analysis.row import Row
from harness.config import ConfigError
from harness.reports import replay_table
from harness.reports.build import FORMATS, TABLES, build
from harness.reports.run_diff import describe, find_run
from harness.store.archives import compact, expand
from harness.store.locations import RUNS, is_local, locate
from harness.store.migration import migrate
from harness.system.console import Console
from harness.tracking import sync, wandb_workspace

GOOD, FAILED, WRONG = 0, 1, 2


_UPKEEP = {
    "compact": "put the finished runs into a few archives, which are read as their folders are",
    "expand": "put packed runs back into folders of their own",
    "migrate": "write runs of older versions of the harness anew as this one writes them",
}


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
            wandb_workspace.run_command(given, console)
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
    "replay": replay_table.run_command,
    "diff": _diff,
    "compact": _compact,
    "expand": _expand,
    "migrate": _migrate,
}
"""All but `build`; what they do is done or raises."""


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
    replay_table.add_command(commands)
    sync.add_command(commands)
    wandb_workspace.add_command(commands)
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
