"""Heads on equal terms: the same data, tokens and trials, and the table of the heads that were trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from tests.scripts.recorded import ROOT, commands_of, overrides_of

METHODS = ["eagle3", "fasteagle", "specblock", "dflash", "dspark"]


@pytest.fixture
def calls(tmp_path: Path) -> list[list[str]]:
    arguments = ("prompts.jsonl", "/prompts", str(tmp_path), "training.seed=7")
    return commands_of(tmp_path, "heads.sh", *arguments, TOKENS="500", TRIAL="100", RATES="1e-3 9e-4 2e-3")


def measured_tasks() -> list[str]:
    experiment = OmegaConf.load(ROOT / "conf" / "experiment" / "equal_heads.yaml")
    tasks: str = OmegaConf.select(experiment, "hydra.sweeper.params.task")
    return tasks.split(",")


def test_every_head_has_the_same_data_tokens_and_trials_and_then_its_best_rate(
    calls: list[list[str]],
) -> None:
    trainings = [overrides_of(one) for one in calls if "harness.train" in one]
    assert trainings[0]["data.task.path"] == "prompts.jsonl"
    seen: dict[Any, list[Any]] = {}
    for one in trainings[1:]:
        assert one["data.path"] == trainings[0]["data.out"]
        assert one["training.seed"] == 7
        assert one["exclude_paths"] == [f"/prompts/{task}.jsonl" for task in measured_tasks()]
        seen.setdefault(one["method"], []).append((one["training.learning_rate"], one["training.num_tokens"]))
    assert seen == {name: [(0.001, 100), (0.0009, 100), (0.002, 100), (0.002, 500)] for name in METHODS}


def test_the_table_finds_every_head_that_was_trained(calls: list[list[str]], tmp_path: Path) -> None:
    trained = {overrides_of(one)["out"] for one in calls if "harness.train" in one}
    (bench,) = [one for one in calls if "harness.bench" in one]
    with initialize_config_dir(str(ROOT / "conf"), version_base=None):
        config = compose("bench", [*bench[2:], "task=gsm8k"])
    assert config.task.path == "/prompts/gsm8k.jsonl"
    assert set(config.methods) - {"vanilla"} == {*METHODS, "ddtree"}
    for method in config.methods.values():
        if "head" in method:
            assert method.head.removesuffix("/head") in trained


def test_a_table_of_some_heads_has_no_other(tmp_path: Path) -> None:
    calls = commands_of(
        tmp_path, "heads.sh", "p.jsonl", "/t", str(tmp_path), METHODS="eagle2 dflash", RATES="1"
    )
    assert {overrides_of(one)["method"] for one in calls[1:-1]} == {"eagle2", "dflash"}
    assert overrides_of(calls[-1])["method"] == ["dflash", "ddtree"]
