"""Show the status of a sweep: python -m harness.sweep status [FOLDER] [--results RESULTS]

Works on any machine that sees the results. The last line on stdout is one JSON document, everything else goes
to stderr. Exit status: 0 success, 1 a cell has failed, 2 the command line is wrong.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from harness.cli.hydra_app import explain
from harness.cli.outcome import FAILED, GOOD, WRONG
from harness.config import ConfigError
from harness.sweeps.status import Sweep, newest, show, status
from harness.system.console import Console
from harness.system.files import print_json


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command. Returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m harness.sweep", description="Show the status of a sweep.", allow_abbrev=False
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    command = commands.add_parser(
        "status", help="count the cells that are done, running, failed or missing", allow_abbrev=False
    )
    command.add_argument(
        "folder", nargs="?", type=Path, help="the sweep's folder (default: the newest sweep)"
    )
    command.add_argument("--results", type=Path, default=Path("results"), help="the folder that holds jobs/")
    given, console = parser.parse_args(arguments), Console()
    try:
        sweep = Sweep(given.folder or newest(given.results))
        current = status(sweep)
    except (ConfigError, HydraException, OmegaConfBaseException) as error:
        console.error(explain(error))
        return WRONG
    show(sweep, current, console)
    print_json(current)
    return FAILED if current["counts"]["failed"] else GOOD


if __name__ == "__main__":
    sys.exit(main())
