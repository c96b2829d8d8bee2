"""Finds the cases of a folder, has each compared by its family, and prints a table and the JSON line."""

from __future__ import annotations

import argparse
import pkgutil
import traceback
from collections import Counter
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Protocol, cast

import torch

import harness.conformance
from harness.config import ConfigError
from harness.conformance.case import Case, Check, Targets, read_case
from harness.system.console import Console
from harness.system.files import print_json

MATCHED, FAILED, WRONG = 0, 1, 2
_MOST_NOTES = 3
"""Differences of one case that are shown."""
_MODELS = "models"
"""Folder of the models that cases refer to."""


class Family(Protocol):
    """What the module `family` of a folder of this package offers."""

    def claims(self, case: Case) -> bool:
        """Whether the case is one of this family."""

    def checks(self, case: Case, targets: Targets) -> list[Check]:
        """Compare a case."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `python -m harness.conformance`; returns its exit status."""
    known = families()
    parser = argparse.ArgumentParser(
        prog="python -m harness.conformance",
        description=f"Compare our methods with recorded cases of official code ({', '.join(known)}).",
    )
    parser.add_argument("folder", type=Path, help=f"holds cases as JSON files, and the {_MODELS}/ they need")
    folder: Path = parser.parse_args(arguments).folder
    console = Console()
    if not folder.is_dir():
        console.error(f"{folder}: no such folder; give one with recorded cases of {', '.join(known)}")
        return WRONG
    # The cases were recorded with one thread; with models this small, more threads only wait for each other.
    torch.set_num_threads(1)
    targets, rows, failed, unknown = Targets(), [], [], Counter[str]()
    folders: dict[str, list[int]] = {}
    cases = find(folder)
    for case in cases:
        family = family_of(case, known)
        if family is None:
            unknown[stated_family(case)] += 1
            continue
        checks = run(case, family, targets)
        bad = [check for check in checks if not check.passed]
        rows.append([case.name, str(len(checks)), "matches" if not bad else "DIFFERS", _notes(checks, bad)])
        if bad:
            failed.append(case.name)
        of_folder = folders.setdefault(Path(case.name).parent.as_posix(), [0, 0, 0])
        for place, count in enumerate((1, not bad, len(checks))):
            of_folder[place] += count
    for name, count in sorted(unknown.items()):
        rows.append([f"{count} of the family {name}", "0", "not known", f"known: {', '.join(known)}"])
    if rows:
        console.table(["case", "checks", "", ""], rows)
        if folders:
            summary = [[name, *map(str, counts)] for name, counts in folders.items()]
            console.table(["folder", "cases", "matched", "checks"], summary)
    else:
        console.error(f"{folder}: holds no case; known families: {', '.join(known)}")
    found = len(cases) - unknown.total()
    document: dict[str, object] = {"found": found, "matched": found - len(failed), "failed": failed}
    print_json({**document, **({"unknown": dict(unknown)} if unknown else {})})
    return MATCHED if found and not failed and not unknown else FAILED


def families() -> dict[str, Family]:
    """The families by the names of their folders."""
    package = harness.conformance
    names = sorted(module.name for module in pkgutil.iter_modules(package.__path__) if module.ispkg)
    return {name: cast("Family", import_module(f"{package.__name__}.{name}.family")) for name in names}


def find(folder: Path) -> list[Case]:
    """Every JSON file below `folder` that is not part of a model nor an index, in the order of the paths."""
    files = sorted(folder.rglob("*.json"))
    return [
        read_case(file, _root(file, folder))
        for file in files
        if _MODELS not in file.relative_to(folder).parts and file.name != "index.json"
    ]


def family_of(case: Case, known: dict[str, Family]) -> Family | None:
    """The family that claims the case; None where there is none."""
    return next((family for family in known.values() if family.claims(case)), None)


def stated_family(case: Case) -> str:
    """The name of a case's family according to the case itself, else the folder that it lies in."""
    return str(case.data.get("family") or case.data.get("method") or case.kind)


def run(case: Case, family: Family, targets: Targets) -> list[Check]:
    """All comparisons of one case; a case that cannot run is a failed check."""
    try:
        return family.checks(case, targets)
    except (ConfigError, OSError, KeyError, ValueError) as error:
        return [Check("runs", False, f"{type(error).__name__}: {error}")]
    except (RuntimeError, AssertionError) as error:
        return [Check("runs", False, "".join(traceback.format_exception_only(error)).strip())]


def _root(file: Path, folder: Path) -> Path:
    """The nearest folder above a case that holds models, else `folder`."""
    above = [parent for parent in file.parents if parent.is_relative_to(folder)]
    return next((parent for parent in above if (parent / _MODELS).is_dir()), folder)


def _notes(checks: list[Check], bad: list[Check]) -> str:
    """The first differences; for a match, its notes (how close it is, which scores tie)."""
    shown = [f"{check.name}: {check.note}" if check.note else check.name for check in bad[:_MOST_NOTES]]
    more = [f"{len(bad) - _MOST_NOTES} more"] if len(bad) > _MOST_NOTES else []
    return "; ".join(shown + more) or ", ".join(check.note for check in checks if check.note)
