"""The recorded cases of GTO's rules match, and a case that says something else does not."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness.conformance.case import Case, Targets
from harness.conformance.gto import family
from harness.conformance.suite import find, main, run

RECORDED = Path(__file__).parents[4] / "shared" / "fixtures" / "trained" / "public"
CASES = [case for case in find(RECORDED) if family.claims(case)] if RECORDED.is_dir() else []
pytestmark = pytest.mark.skipif(not CASES, reason=f"the recorded cases of GTO are not at {RECORDED}")
Spoil = Callable[[dict[str, Any]], None]


def failed(case: Case) -> list[str]:
    return [check.name for check in run(case, family, Targets()) if not check.passed]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_recorded_case_matches(case: Case) -> None:
    assert len(run(case, family, Targets())) >= 30
    assert failed(case) == []


SPOILS: dict[str, tuple[str, Spoil]] = {
    "rewards/leaves": ("chain_certain: leaves", lambda data: data["cases"][0].update(leaves=[0])),
    "rewards/lse": ("chain_certain: lse_eta4", lambda data: data["cases"][0].update({"lse_eta4": 2.1})),
    "rewards/exact": (
        "chain_certain: expected accepted tokens",
        lambda data: data["cases"][0].update(expected_accepted_brute_force=1.9),
    ),
    "group_a/node": (
        "0: current: node_sum",
        lambda data: data["positions"][0]["current"]["reward"].update(node_sum=0.0),
    ),
    "group_a/path": ("0: accepted path", lambda data: data["positions"][0].update(accepted_path=[5])),
    "group_a/s": ("s", lambda data: data["positions"][1].update(s=1.0)),
    "group_a/R": ("mean: R", lambda data: data["mean"]["R"].pop()),
    "group_a/advantages": (
        "max, ddof 1: advantages",
        lambda data: data["max"]["ddof1"].update(advantages=data["max"]["ddof0"]["advantages"]),
    ),
    "group_b/loss": ("lse_eta1, ddof 0: loss", lambda data: data["lse_eta1"]["ddof0"].update(loss=0.0)),
    "group_b/gradient": (
        "node_sum, ddof 0: gradient",
        lambda data: data["node_sum"]["ddof0"]["dloss_dlogp_current"][0].__setitem__(0, 9.0),
    ),
    "group_b/layout": ("runs", lambda data: data.pop("settings")),
}


@pytest.mark.parametrize("name", SPOILS)
def test_a_case_that_says_something_else_does_not_match(name: str) -> None:
    case = next(one for one in CASES if one.name.endswith(name.split("/")[0]))
    expected, spoil = SPOILS[name]
    data = copy.deepcopy(case.data)
    spoil(data)
    assert expected in failed(replace(case, data=data))


def test_a_folder_without_the_index_is_taken_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "elsewhere").mkdir()
    for case in CASES:
        (tmp_path / "elsewhere" / case.file.name).write_text(json.dumps(case.data))
    assert main([str(tmp_path)]) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (told["matched"], told["failed"]) == (len(CASES), [])
