"""Finds the cases of a folder, runs each by its kind, prints a table and the JSON line."""

from __future__ import annotations

import argparse
import json
import traceback
from collections.abc import Sequence
from pathlib import Path

import torch

from harness.config import ConfigError
from harness.conformance import statistics
from harness.conformance.case import Case, Check, Pairs, read_case
from harness.conformance.eagle import greedy, sampling
from harness.system.console import Console

MATCHED, FAILED, WRONG = 0, 1, 2
_KINDS = {"cases": greedy.checks, "sampling": sampling.checks, "statistics": statistics.checks}
"""Folder of a kind of case, and what compares one."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `python -m harness.conformance`; its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m harness.conformance",
        description="Compare our EAGLE with recorded cases of the official code.",
    )
    parser.add_argument("folder", type=Path, help="holds models/ and any of cases/, sampling/, statistics/")
    folder: Path = parser.parse_args(arguments).folder
    console = Console()
    if not folder.is_dir():
        console.error(f"{folder}: no such folder; give one with models/ and cases/, sampling/ or statistics/")
        return WRONG
    # As the cases were recorded; on models this small, threads only wait for each other.
    torch.set_num_threads(1)
    found = find(folder)
    pairs = Pairs()
    rows, failed = [], []
    for case in found:
        checks = run(case, pairs)
        bad = [check for check in checks if not check.passed]
        rows.append([case.name, str(len(checks)), "matches" if not bad else "DIFFERS", _told(checks, bad)])
        if bad:
            failed.append(case.name)
    if rows:
        console.table(["case", "checks", "", ""], rows)
    else:
        console.error(f"{folder}: holds no case (cases/, sampling/ or statistics/, with their models/)")
    document = {"found": len(found), "matched": len(found) - len(failed), "failed": failed}
    print(json.dumps(document), flush=True)
    return MATCHED if found and not failed else FAILED


def find(folder: Path) -> list[Case]:
    """Every case below `folder`, in the order of their names."""
    places = [path for kind in _KINDS for path in folder.rglob(kind) if path.is_dir()]
    files = [(file, place) for place in places for file in sorted(place.rglob("*.json"))]
    return [read_case(file, place.parent, place.name) for file, place in sorted(files)]


def run(case: Case, pairs: Pairs) -> list[Check]:
    """Everything compared of one case; what cannot be run is a failed check."""
    try:
        return _KINDS[case.kind](case, pairs)
    except (ConfigError, OSError, KeyError, ValueError) as error:
        return [Check("runs", False, f"{type(error).__name__}: {error}")]
    except (RuntimeError, AssertionError) as error:
        return [Check("runs", False, "".join(traceback.format_exception_only(error)).strip())]


def _told(checks: list[Check], bad: list[Check]) -> str:
    """The differences; of a match, what is worth knowing (how close, which ties)."""
    return "; ".join(
        f"{check.name}: {check.note}" if check.note else check.name for check in bad
    ) or ", ".join(check.note for check in checks if check.note)
