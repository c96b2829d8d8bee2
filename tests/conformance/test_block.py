"""The recorded cases of block drafters, P-EAGLE and EAGLE-3.1 match, and altered ones do not."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness.conformance.case import Case, Targets
from harness.conformance.suite import families, family_of, find, run

RECORDED = Path(__file__).parents[4] / "shared" / "fixtures" / "trained" / "public"
KNOWN = {name: one for name, one in families().items() if name in ("block", "peagle", "eagle31")}
CASES = [case for case in find(RECORDED) if family_of(case, KNOWN)] if RECORDED.is_dir() else []
pytestmark = pytest.mark.skipif(
    not CASES, reason=f"the recorded cases of block drafters are not at {RECORDED}"
)
SHORT = [case for case in CASES if "rounds" not in case.data or len(case.data["rounds"]) < 12]
Spoil = Callable[[dict[str, Any], dict[str, Any]], None]


def failed(case: Case) -> list[str]:
    family = family_of(case, KNOWN)
    assert family is not None
    return [check.name for check in run(case, family, Targets()) if not check.passed]


@pytest.mark.parametrize("case", SHORT, ids=lambda case: case.name)
def test_a_recorded_case_matches(case: Case) -> None:
    assert failed(case) == []


SPOILS: dict[str, tuple[str, Spoil]] = {
    "dflash-zlab-qwen8__T0_block4/token": (
        "round 1: tokens",
        lambda data, _: data["rounds"][1]["drafted"].reverse(),
    ),
    "dflash-zlab-qwen8__T1/logits": (
        "round 0: draft_logits",
        lambda _, tensors: tensors["r0.draft_logits"].mul_(2),
    ),
    "dflash2-sliding__forward/selected": (
        "candidates",
        lambda _, tensors: tensors["candidates_per_slot"].add_(1),
    ),
    "dspark-rnn-qwen8__T1/confidence": (
        "round 0: confidence",
        lambda _, tensors: tensors["r0.confidence_logits"].add_(0.1),
    ),
    "dspark-vanilla-qwen8__train_s71/loss": ("loss", lambda data, _: data.update(loss=data["loss"] + 0.1)),
    "sp-dflash-anchor/loss": ("loss", lambda data, _: data.update(dpace_alpha=0.4)),
    "peagle-llama/token": ("tokens", lambda data, _: data["drafted_target_ids"].reverse()),
    "eagle3-plain/step": ("step 2", lambda _, tensors: tensors["step2.logits"].mul_(2)),
}


@pytest.mark.parametrize("spoil", SPOILS)
def test_a_case_that_says_something_else_differs_by_name(spoil: str) -> None:
    stem, (name, change) = spoil.split("/")[0], SPOILS[spoil]
    recorded = next(case for case in CASES if case.file.stem == stem)
    case = replace(recorded, data=copy.deepcopy(recorded.data))
    tensors = {key: one.clone() for key, one in recorded.tensors.items()}
    change(case.data, tensors)
    case.__dict__["tensors"] = tensors
    assert failed(case) == [name]
