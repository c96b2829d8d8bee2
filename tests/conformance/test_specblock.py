"""The recorded cases of SpecBlock match, and a case that says something else does not."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.conformance.case import Case, Targets
from harness.conformance.specblock import family
from harness.conformance.suite import find, run

RECORDED = Path(__file__).parents[4] / "shared" / "fixtures" / "trained" / "public"
CASES = [case for case in find(RECORDED) if family.claims(case)] if RECORDED.is_dir() else []
pytestmark = pytest.mark.skipif(not CASES, reason=f"the recorded cases of SpecBlock are not at {RECORDED}")
Spoil = Callable[[dict[str, Any]], None]


@pytest.fixture(scope="module")
def targets() -> Targets:
    torch.set_num_threads(1)
    return Targets()


def failed(case: Case, targets: Targets) -> list[str]:
    return [check.name for check in run(case, family, targets) if not check.passed]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_recorded_case_matches(case: Case, targets: Targets) -> None:
    checks = run(case, family, targets)
    assert len(checks) >= 5
    assert [check for check in checks if not check.passed] == []


SPOILS: dict[str, tuple[str, Spoil]] = {
    "train_forward": ("row 0, block 1: logits", lambda data: data.update(M=[1, 3])),
    "inference_forward": ("start0: logits", lambda data: data["starts"][0].update(slot=1)),
    "tree_paper__p0": ("tree", lambda data: data["tree"]["tokens"].__setitem__(5, 0)),
    "tree_static__p0": ("runs", lambda data: data.update(builder="other")),
    "tree_released_numpy__p0": ("candidates: paths and slots", lambda data: data.update(builder="paper")),
    "loss_s53_top8": ("block0: draft", lambda data: data.update(draft_loss_topk=-1)),
    "loss_s52": ("block1: rows", lambda data: data["blocks"][1].update(positions_in_valid_prefix=[0.0])),
    "rounds_released_numpy_rank10": (
        "round 4: position",
        lambda data: data["rounds"][4].update(block2_base_position=1),
    ),
}


@pytest.mark.parametrize("name", SPOILS)
def test_a_case_that_says_something_else_does_not_match(name: str, targets: Targets) -> None:
    case = next(one for one in CASES if one.name.endswith(name))
    expected, spoil = SPOILS[name]
    data = copy.deepcopy(case.data)
    spoil(data)
    assert expected in failed(replace(case, data=data), targets)


def test_a_head_without_its_target_is_named(targets: Targets) -> None:
    case = next(one for one in CASES if "__loss" in one.name)
    (check,) = run(replace(case, data={**case.data, "target": "none"}), family, targets)
    assert "'none', which is not in models/" in check.note
