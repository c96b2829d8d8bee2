"""The command `report replay`: prints what `harness.costs.replay` concludes."""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from fnmatch import fnmatchcase
from pathlib import Path

from harness.config import ConfigError
from harness.costs.headroom import run_identity, table_of
from harness.costs.replay import Replayed, replay
from harness.costs.table import load_table, load_tables
from harness.reports import formatting
from harness.store.locations import RUNS
from harness.store.records import BASELINE
from harness.store.run_store import load_runs
from harness.system.console import Console
from harness.system.files import print_json

_HEADERS = ("target", "task", "T", "method", "batch", "draft length", "tau", "tokens/s", "speedup", "marks")


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """The sub-command `replay` of `python -m harness.report`."""
    command = commands.add_parser(
        "replay",
        help="what other draft lengths and batches would have given, by a cost table",
        description=sys.modules[replay.__module__].__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    command.add_argument("--results", type=Path, default=Path("results"), help="folder with runs/ and costs/")
    command.add_argument("--only", metavar="PATTERN", help="of run ids, as in 'smollm2_135m.*'")
    command.add_argument("--costs", type=Path, metavar="FILE", help="a cost table (default: the run's own)")
    command.add_argument("--length", type=_numbers, metavar="N,N", help="draft lengths (default: all)")
    command.add_argument("--batch", type=_numbers, metavar="N,N", help="batches (default: the table's)")


def run_command(given: argparse.Namespace, console: Console) -> None:
    """Replay the chosen runs: a table on stderr, one JSON line on stdout.

    Raises:
        ConfigError: there is no run or no table, or they do not fit.
    """
    runs = [
        run
        for run in load_runs(given.results / RUNS)
        if run.records and fnmatchcase(run.manifest.run_id, given.only or "*")
    ]
    if not runs:
        raise ConfigError(
            f"{given.results / 'runs'}: no run with records matches --only {given.only or '*'!r}; type"
            " python -m harness.bench to measure some"
        )
    tables = [load_table(given.costs)] if given.costs else load_tables(given.results)
    found: list[Replayed] = []
    for run in runs:
        table = table_of(run.manifest, tables)
        if table is None and given.costs:
            table = tables[0].expect(run_identity(run.manifest))
        if table is None:
            raise ConfigError(
                f"{run.manifest.run_id}: no table in {given.results / 'costs'} is of its machine and target;"
                f" type python -m harness.cost target={run.manifest.cell.target}"
                f" method=[{','.join(name for name in run.manifest.arms if name != BASELINE)}]"
            )
        found += replay(run, table, given.length, given.batch)
    console.table(list(_HEADERS), [_line(one) for one in found], title="Replayed, not measured")
    print_json({"replayed": [asdict(one) for one in found]})


def _line(one: Replayed) -> list[str]:
    return [
        *(one.target, one.task, f"{one.temperature:g}", one.method, str(one.batch)),
        "as recorded" if one.length is None else str(one.length),
        *(formatting.number(one.tau), formatting.number(one.tokens_per_s, 1), formatting.times(one.speedup)),
        ", ".join(one.marks),
    ]


def _numbers(text: str) -> list[int]:
    try:
        found = [int(part) for part in text.split(",")]
    except ValueError:
        found = []
    if not found or min(found) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: numbers from 1 with commas between them, as in 1,2,4")
    return found
