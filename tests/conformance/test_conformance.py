"""Conformance: the recorded cases of the official code, and a folder of cases that the reference makes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_module
from safetensors.torch import save_file

from harness.benchmark.experiment import Experiment
from harness.benchmark.plan import make_plan
from harness.benchmark.session import Session
from harness.conformance.case import Case, Targets
from harness.conformance.eagle import family
from harness.conformance.eagle.greedy import official_rounds
from harness.conformance.suite import families, find, main, run
from harness.store.run_store import ResultStore, load_run
from harness.system.console import Console
from methods.shared.eagle.checkpoint import save_head
from tests.methods.eagle.test_drafter import HEADS, PROMPT, model_of, random_weights, reference

RECORDED = Path(__file__).parents[3] / "shared" / "fixtures" / "public"
CASES = find(RECORDED) if RECORDED.is_dir() else []


@pytest.fixture(scope="module")
def targets() -> Targets:
    torch.set_num_threads(1)
    return Targets()


@pytest.mark.skipif(not CASES, reason=f"the recorded cases of the official code are not at {RECORDED}")
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_recorded_case_of_the_official_code_matches(case: Case, targets: Targets) -> None:
    assert family.claims(case)
    checks = run(case, family, targets)
    assert len(checks) >= 3
    assert [check for check in checks if not check.passed] == []


def recorded_folder(folder: Path, kind: str, family: str, total_token: int, depth: int, top_k: int) -> Path:
    """A folder in the layout of the recorded cases with one case, made by the reference."""
    head = random_weights(HEADS[kind])
    model_of(family).save_pretrained(folder / "models" / "target")
    save_head(head, folder / "models" / "head", aux_layers=None, card={})
    slow = reference(family, head)
    slow.generate(PROMPT, 6, total_token, depth, top_k)
    rounds, new = [], 0
    for one in slow.rounds:
        rounds.append(one)
        new += len(one.accepted) + 1
        if new > 4:
            break
    first = int(slow.target(PROMPT)[0][-1].argmax())
    output = [first, *(token for one in rounds for token in (*one.accepted, one.bonus))]
    naive = list(PROMPT)
    for _ in range(5):
        naive.append(int(slow.target(naive)[0][-1].argmax()))
    best = [0 if not one.accepted else row_of(one.paths, tuple(one.accepted)) for one in rounds]
    data = {
        "target_dir": "models/target",
        "head_dir": "models/head",
        "use_eagle3": HEADS[kind].architecture == "eagle3",
        "dtype": "float32",
        "prompt_ids": PROMPT,
        "total_token": total_token,
        "depth": depth,
        "top_k": top_k,
        "max_new_tokens": 4,
        "max_length": 512,
        "eos_token_id": None,
        "naive": {"output_ids": naive},
        "eagle": {
            "output_ids": [*PROMPT, *output[:-1]],
            "new_token": new,
            "idx": len(rounds) - 1,
            "accept_lengths": [len(one.accepted) for one in rounds],
            "bonus_tokens": [one.bonus for one in rounds],
            "best_candidates": best,
        },
        "tensors": "one.safetensors",
    }
    place = folder / "cases" / "pair"
    place.mkdir(parents=True)
    (place / "one.json").write_text(json.dumps(data))
    tensors = {"prefill_logits_last": slow.target(PROMPT)[0][-1:].clone()}
    save_file(tensors, place / "one.safetensors")
    return folder


def row_of(paths: list[Any], accepted: tuple[int, ...]) -> int:
    """The first leaf whose path begins with what was accepted."""
    leaves = [path for path in paths if not any(other[:-1] == path for other in paths)]
    return next(row for row, path in enumerate(leaves) if path[: len(accepted)] == accepted)


@pytest.mark.parametrize(
    ("kind", "family"),
    [
        ("eagle", "llama"),
        ("eagle, biases, embedding of its own", "qwen2"),
        ("eagle3", "qwen3"),
        ("eagle3, draft vocabulary", "llama, tied, biased"),
        ("eagle3, head size of its own", "mixtral"),
    ],
)
def test_cases_of_the_reference_match(
    kind: str, family: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = recorded_folder(tmp_path, kind, family, 20, 2, 6)
    assert main([str(folder)]) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told == {"found": 1, "matched": 1, "failed": []}


def test_a_case_that_asks_for_no_new_token_is_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = recorded_folder(tmp_path, "eagle3", "llama", 20, 2, 6)
    file = folder / "cases" / "pair" / "one.json"
    data = json.loads(file.read_text())
    eagle = data["eagle"]
    # The official code checks after a round, so that it makes one round even then.
    num_new = eagle["accept_lengths"][0] + 1
    one_round = {name: eagle[name][:1] for name in ("accept_lengths", "bonus_tokens", "best_candidates")}
    output_ids = eagle["output_ids"][: len(PROMPT) + num_new]
    data["eagle"] = {**one_round, "output_ids": output_ids, "new_token": num_new, "idx": 0}
    file.write_text(json.dumps({**data, "max_new_tokens": 0, "naive": {"output_ids": PROMPT}}))
    assert main([str(folder)]) == 0, capsys.readouterr().err
    data["eagle"]["accept_lengths"][0] += 1
    file.write_text(json.dumps({**data, "max_new_tokens": 0, "naive": {"output_ids": PROMPT}}))
    assert main([str(folder)]) == 1


def test_a_difference_is_named_and_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = recorded_folder(tmp_path, "eagle3", "llama", 20, 2, 6)
    file = folder / "cases" / "pair" / "one.json"
    data = json.loads(file.read_text())
    data["eagle"]["accept_lengths"][0] += 1
    file.write_text(json.dumps(data))
    assert main([str(folder)]) == 1
    said = capsys.readouterr()
    assert json.loads(said.out) == {"found": 1, "matched": 0, "failed": ["cases/pair/one"]}
    assert "accepted lengths" in said.err


def test_a_case_that_cannot_run_is_a_failed_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = recorded_folder(tmp_path, "eagle3", "llama", 20, 2, 6)
    (folder / "models" / "head" / "model.safetensors").write_bytes(b"torn")
    assert main([str(folder)]) == 1
    assert json.loads(capsys.readouterr().out)["failed"] == ["cases/pair/one"]


def test_no_case_at_all_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == 1
    assert json.loads(capsys.readouterr().out) == {"found": 0, "matched": 0, "failed": []}
    assert main([str(tmp_path / "none")]) == 2


def test_cases_of_other_families_are_counted_by_family_and_never_match(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = recorded_folder(tmp_path, "eagle3", "llama", 20, 2, 6)
    others = {
        "a/one.json": {"family": "other"},
        "a/two.json": {"family": "other"},
        "b/x.json": {"method": "sam"},
    }
    for name, data in {**others, "gto/y.json": {"settings": 1}, "index.json": {}}.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(data))
    assert main([str(folder)]) == 1
    said = capsys.readouterr()
    unknown = {"other": 2, "sam": 1, "gto": 1}
    assert json.loads(said.out) == {"found": 1, "matched": 1, "failed": [], "unknown": unknown}
    assert "2 of the family other" in said.err


def test_every_folder_of_the_package_is_a_family() -> None:
    assert list(families()) == [
        "block",
        "cast",
        "drafter_trace",
        "eagle",
        "eagle31",
        "gto",
        "peagle",
        "specblock",
        "tts",
    ]


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({}, 3),
        ({"max_new_tokens": 4}, 2),
        ({"max_length": 10 + 3 + 5 + 4}, 2),
        ({"eos": {15}}, 2),
        ({"eos": {17}}, 3),
    ],
)
def test_the_official_stop_rule_looks_after_every_round(changed: dict[str, Any], expected: int) -> None:
    eos = changed.pop("eos", {99})
    data = {"max_new_tokens": 50, "max_length": 99, "total_token": 4, "prompt_ids": [1] * 5, **changed}
    assert official_rounds(data, [11, 12, 13, 14, 15, 16, 17, 18, 19], [2, 2, 1], eos) == expected


@pytest.mark.skipif(not CASES, reason=f"the recorded cases of the official code are not at {RECORDED}")
@pytest.mark.parametrize("pair", ["llama8-eagle2", "llama8-eagle3"])
def test_the_ordinary_benchmark_reproduces_recorded_cases(pair: str, tmp_path: Path) -> None:
    """`task=token_ids` and a head in a folder: what anyone can do with another implementation's cases."""
    cases = [case for case in CASES if case.kind == "cases" and case.name.startswith(f"cases/{pair}/p")]
    cases = [case for case in cases if case.name.endswith("__t24_d4_k6")]
    assert cases
    prompts = tmp_path / "prompts.jsonl"
    lines = [{"id": case.name, "input_ids": case.data["prompt_ids"]} for case in cases]
    prompts.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    method = pair.removeprefix("llama8-")
    tree = (f"methods.{method}.tree.{key}={cases[0].data[key]}" for key in ("total_token", "depth", "top_k"))
    overrides = [
        "~experiment",
        "target=hub",
        f"target.path={RECORDED}/models/llama8",
        "task=token_ids",
        f"task.path={prompts}",
        f"method=[{method}]",
        f"methods.{method}.head={RECORDED}/models/{pair}",
        *tree,
        "measure=acceptance",
        f"max_new_tokens={cases[0].data['max_new_tokens']}",
        "tracker=none",
    ]
    with initialize_config_module("conf", version_base="1.3"):
        plan = make_plan(compose("bench", overrides=overrides), overrides)
    run = load_run(Experiment(Session(plan, Console()), plan.decodings["greedy"]).run(ResultStore(tmp_path)))
    records = {record.conversation: record for record in run.records if record.arm == method}
    for case in cases:
        record, theirs = records[case.name], case.data["eagle"]
        assert record.verdict is not None
        assert record.verdict.kind == "identical"
        common = min(len(record.accepted), len(theirs["accept_lengths"]))
        assert record.accepted[:common] == theirs["accept_lengths"][:common]
        ids = theirs["output_ids"][len(case.data["prompt_ids"]) :]
        shared = min(len(ids), len(record.output_ids))
        assert record.output_ids[:shared] == ids[:shared]
