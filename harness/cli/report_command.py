"""The command `python -m harness.report`: its parser, its sub-commands and its exit status."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from harness.cli.outcome import FAILED, GOOD, WRONG
from harness.config import ConfigError
from harness.reports import replay_table
from harness.reports.build import FORMATS, TABLES, build
from harness.reports.run_diff import describe, find_run
from harness.store.integrity.paths import is_local
from harness.store.locations import RUNS, locate
from harness.store.upkeep.archives import compact, expand
from harness.store.upkeep.migration import migrate
from harness.store.upkeep.verify import verify
from harness.system.console import Console
from harness.system.files import print_json
from harness.system.secrets import redact_text
from harness.tracking import sync, wandb_workspace

_UPKEEP = {
    "compact": "move finished runs into a few archives, which are read like folders",
    "expand": "move archived runs back into folders of their own",
    "migrate": "rewrite runs of older versions of the harness in the present format",
}
"""Commands that maintain the store, and their help texts."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `python -m harness.report`.

    Returns its exit status: 0 success, 1 a row failed or is broken or a run could not be sent, 2 wrong usage.
    """
    given = _parser().parse_args(arguments)
    console = Console()
    try:
        if given.command in _COMMANDS:
            _COMMANDS[given.command](given, console)
            return GOOD
        if given.command == "verify":
            return _verify(given, console)
        if given.command == "sync":
            return GOOD if sync.run_command(given, console) else FAILED
        if given.command == "workspace":
            wandb_workspace.run_command(given, console)
            return GOOD
        roots = [locate(root) for root in given.results]
        if given.out is None and not is_local(roots[0]):
            raise ConfigError(f"--results {roots[0]}: cannot be written to; type --out FOLDER as well")
        out = given.out or roots[0] / "tables"
        rows = build(roots, out, console, given.only, given.allow_mixed, given.format, given.by_category)
    except (ConfigError, OSError) as error:
        console.error(error)
        return WRONG
    return FAILED if any(row.is_bad for row in rows) else GOOD


def _verify(given: argparse.Namespace, console: Console) -> int:
    """Print a JSON document of all findings, and a line for each that is not simply good."""
    findings = [finding for root in given.results for finding in verify(locate(root) / RUNS)]
    for state, name, reason in ((one.state, one.run, one.reason) for one in findings):
        if state == "damaged":
            console.error(f"{name}: {state}: {reason}")
        elif reason:
            console.note(f"{name}: {state}: {reason}")
    counts = Counter(one.state for one in findings)
    shown = ", ".join(f"{counts[state]} {state}" for state in ("verified", "not verifiable", "damaged"))
    console.note(f"{len(findings)} runs: {shown}")
    print_json({"runs": [one._asdict() for one in findings]})
    return FAILED if counts["damaged"] else GOOD


def _diff(given: argparse.Namespace, _: Console) -> None:
    print(
        redact_text(describe(*(find_run(given.results / RUNS, name) for name in (given.first, given.second))))
    )


def _compact(given: argparse.Namespace, console: Console) -> None:
    archives = compact(given.results / RUNS, console.note)
    console.note(f"{len(archives)} new archives; python -m harness.report expand restores the folders")


def _expand(given: argparse.Namespace, console: Console) -> None:
    console.note(f"{expand(given.results / RUNS, console.note)} runs restored to folders")


def _migrate(given: argparse.Namespace, console: Console) -> None:
    console.note(f"{migrate(given.results / RUNS, console.note)} runs rewritten")


_COMMANDS: dict[str, Callable[[argparse.Namespace, Console], None]] = {
    "replay": replay_table.run_command,
    "diff": _diff,
    "compact": _compact,
    "expand": _expand,
    "migrate": _migrate,
}
"""Commands that either succeed or raise."""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m harness.report",
        description="Make tables, figures, a page or a tracker's runs of stored runs.",
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_build(commands)
    replay_table.add_command(commands)
    sync.add_command(commands)
    wandb_workspace.add_command(commands)
    _add_diff(commands)
    checking = commands.add_parser(
        "verify",
        help="check whether stored runs are what was written",
        description="Check whether stored runs are what was written: types, arithmetic, the chain of"
        " checksums from the manifest to the last line, and the exports. stdout gets one JSON document."
        " Exit status 1: a run is damaged.",
        allow_abbrev=False,
    )
    _add_roots(checking)
    for name, purpose in _UPKEEP.items():
        description = f"{purpose[0].upper()}{purpose[1:]}."
        command = commands.add_parser(name, help=purpose, description=description, allow_abbrev=False)
        _add_results(command)
    return parser


def _add_build(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    command = commands.add_parser(
        "build", help="write tables, figures or the HTML report of all stored runs", allow_abbrev=False
    )
    command.add_argument(
        "--format",
        nargs="+",
        choices=FORMATS,
        default=TABLES,
        help=f"formats to write, of which html is one page that opens offline (default: {' '.join(TABLES)})",
    )
    _add_roots(command)
    command.add_argument("--out", type=Path, help="folder to write into (default: RESULTS/tables)")
    command.add_argument(
        "--only", metavar="PATTERN", help="only run ids that match it, as in 'smollm2_135m.*'"
    )
    command.add_argument(
        "--allow-mixed",
        action="store_true",
        help="put runs that differ into one table with footnotes, instead of refusing",
    )
    command.add_argument(
        "--by-category",
        action="store_true",
        help="a row for every category of a task's prompts, instead of one for the task",
    )


def _add_roots(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--results",
        nargs="+",
        default=["results"],
        help="folders or URLs (s3://..., https://...) that hold runs/; several are read as one store",
    )


def _add_diff(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    command = commands.add_parser(
        "diff",
        help="show how two runs differ and how that may affect their numbers",
        description="Show how two runs differ and how that may affect their numbers.",
        allow_abbrev=False,
    )
    for name in ("first", "second"):
        command.add_argument(name, metavar="RUN", help="id of a run, part of the id, or its folder")
    _add_results(command)


def _add_results(command: argparse.ArgumentParser) -> None:
    command.add_argument("--results", type=Path, default=Path("results"), help="the folder that holds runs/")
