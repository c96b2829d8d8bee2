"""Drafter traces: every recorded draft of the authors' codes is ours, and a difference is found."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.config import ConfigError
from harness.conformance.case import Case, Targets, read_case
from harness.conformance.drafter_trace import family
from harness.conformance.suite import families, find, main, run

RECORDED = Path(__file__).parents[3] / "shared" / "fixtures" / "ngram" / "public"
CASES = find(RECORDED) if RECORDED.is_dir() else []
DECLARED = sorted(file.stem for file in (Path(__file__).parents[2] / "conf" / "recorded").glob("*.yaml"))


@pytest.mark.skipif(not CASES, reason=f"the recorded cases of the authors' codes are not at {RECORDED}")
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_recorded_draft_is_ours(case: Case) -> None:
    torch.set_num_threads(1)
    assert family.claims(case)
    checks = run(case, family, Targets())
    assert len(checks) >= sum(len(call["rounds"]) for call in case.data["calls"])
    assert [check for check in checks if not check.passed] == []


@pytest.mark.skipif(not CASES, reason=f"the recorded cases of the authors' codes are not at {RECORDED}")
def test_every_declared_method_is_recorded() -> None:
    others = set(families())  # are read by their own families
    assert {case.data["method"] for case in CASES} == set(DECLARED) - others


def trace(**changed: Any) -> dict[str, Any]:
    """A case of one call that repeats its prompt: prompt lookup drafts the text itself."""
    script = [5, 6, 7, 8, 5, 6, 7, 8, 9]
    first = {"n": 4, "root": 5, "draft_tokens": [6, 7, 8], "draft_parents": [-1, 0, 1], "next_root": 9}
    call = {"prompt_ids": script[:4], "memory": "fresh", "script": script}
    return {
        "format": "drafter-trace/1",
        "method": "pld_transformers",
        "params": {
            "max_matching_ngram_size": 2,
            "num_output_tokens": 3,
            "max_length": 100,
            "eos_token_id": None,
        },
        "vocab_size": 16,
        "eos_token_id": None,
        "calls": [{**call, "rounds": [{**first, "accepted_nodes": [0, 1, 2], **changed}]}],
    }


def case_of(data: dict[str, Any], folder: Path) -> Case:
    file = folder / "mine" / "one.json"
    file.parent.mkdir()
    file.write_text(json.dumps(data))
    return read_case(file, folder)


def test_a_folder_of_the_layout_is_summarised_and_a_difference_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    case_of(trace(), tmp_path)
    assert main([str(tmp_path)]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out) == {"found": 1, "matched": 1, "failed": []}
    assert "mine" in said.err
    (tmp_path / "mine" / "one.json").write_text(json.dumps(trace(draft_tokens=[6, 7, 7])))
    assert main([str(tmp_path)]) == 1
    said = capsys.readouterr()
    assert json.loads(said.out)["failed"] == ["mine/one"]
    assert "lacks (6, 7, 7) and adds (6, 7, 8)" in " ".join(said.err.split())


def test_a_method_that_nobody_declares_is_unknown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    case_of({**trace(), "method": "nobodys"}, tmp_path)
    assert main([str(tmp_path)]) == 1
    assert json.loads(capsys.readouterr().out)["unknown"] == {"nobodys": 1}


@pytest.mark.parametrize(("certain", "passes"), [([6, 7], True), ([6, 9], False)])
def test_in_a_round_with_a_tie_only_what_it_cannot_change_must_be_there(
    certain: list[int], passes: bool, tmp_path: Path
) -> None:
    """The drafter drafts (6), (6, 7) and (6, 7, 8)."""
    tie = {"strict_tokens": certain, "strict_parents": [-1, 0]}
    (check,) = run(case_of(trace(tie=tie), tmp_path), family, Targets())
    assert check.passed is passes


def test_a_call_that_runs_into_its_full_length_leaves_no_room(tmp_path: Path) -> None:
    data = trace(draft_tokens=[], draft_parents=[], accepted_nodes=[])
    data["params"]["max_length"] = 6
    (check,) = run(case_of(data, tmp_path), family, Targets())
    assert check.passed


def test_a_declaration_with_an_unknown_key_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pld_transformers.yaml").write_text("drafts: {_target_: methods.vanilla.Vanilla}\n")
    monkeypatch.setattr(family, "_DECLARATIONS", tmp_path)
    with pytest.raises(ConfigError, match=r"unknown key 'drafts'; allowed are names and draft, paper"):
        list(family.declared(case_of(trace(), tmp_path)))
