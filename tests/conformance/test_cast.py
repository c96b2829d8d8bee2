"""The recorded cases of CAST's rules match, and a case that says something else does not."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness.conformance.case import Case, Targets
from harness.conformance.cast import family
from harness.conformance.suite import find, main, run

RECORDED = Path(__file__).parents[4] / "shared" / "fixtures" / "trained" / "public"
CASES = [case for case in find(RECORDED) if family.claims(case)] if RECORDED.is_dir() else []
pytestmark = pytest.mark.skipif(not CASES, reason=f"the recorded cases of CAST are not at {RECORDED}")
Spoil = Callable[[dict[str, Any]], None]


def failed(case: Case) -> list[str]:
    return [check.name for check in run(case, family, Targets()) if not check.passed]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_recorded_case_matches(case: Case) -> None:
    assert len(run(case, family, Targets())) >= 3
    assert failed(case) == []


SPOILS: dict[str, tuple[str, Spoil]] = {
    "tree_stepped/m": ("m", lambda data: data.update(m=data["m"] + 1)),
    "tree_stepped/n": ("layer 1: n", lambda data: data["layers"][1].update(n=1)),
    "tree_stepped/depth": ("layer 0: continues", lambda data: data["layers"][0].update(continues=False)),
    "tree_stepped/path": ("row 1: kept paths", lambda data: data["kept_paths"][1].pop()),
    "tree_stepped/layers": ("layers", lambda data: data["layers"].pop()),
    "tree_inverted/alpha": ("layer 1: alpha", lambda data: data["layers"][1].update(alpha=0.1)),
    "tree_inverted/u": ("rerank: u", lambda data: data["rerank_u"].append(1.0)),
    "algorithm1/kept": ("0 (noisy): kept", lambda data: data["cases"][0].update(kept=0)),
    "algorithm1/select": ("bucket of 0 in 5 x 128", lambda data: data["select"][0].update(select=1)),
    "eagle_equivalence/kept": ("0: kept", lambda data: data["cases"][0].update(kept_with_ge=1)),
    "eagle_equivalence/layout": ("runs", lambda data: data.pop("cases")),
}


@pytest.mark.parametrize("spoil", SPOILS)
def test_a_case_that_says_something_else_differs_by_name(spoil: str) -> None:
    stem, (name, change) = spoil.split("/")[0], SPOILS[spoil]
    case = next(case for case in CASES if case.file.stem == stem)
    data = copy.deepcopy(case.data)
    change(data)
    assert failed(replace(case, data=data)) == [name]


def test_the_command_finds_cases_in_any_folder_of_that_layout(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    case = next(case for case in CASES if case.file.stem == "tree_flat")
    folder = tmp_path / "cases" / "elsewhere"
    folder.mkdir(parents=True)
    (folder / "mine.json").write_text(json.dumps(case.data))
    assert main([str(tmp_path)]) == 0
    line = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert line == {"found": 1, "matched": 1, "failed": []}
