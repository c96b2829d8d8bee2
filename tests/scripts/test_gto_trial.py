"""The trial of GTO trains on no prompt that it measures."""

from __future__ import annotations

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from tests.scripts.recorded import ROOT, commands_of, overrides_of


@pytest.fixture
def calls(tmp_path: Path) -> list[list[str]]:
    return commands_of(tmp_path, "gto_trial.sh", "dialogues.jsonl", "/prompts", "out", "max_new_tokens=8")


def measured_tasks() -> list[str]:
    experiment = OmegaConf.load(ROOT / "conf" / "experiment" / "gto_trial.yaml")
    tasks: str = OmegaConf.select(experiment, "hydra.sweeper.params.task")
    return tasks.split(",")


def test_every_training_excludes_the_prompts_of_every_measured_task(calls: list[list[str]]) -> None:
    trainings = [one for one in calls if "harness.train" in one]
    assert len(trainings) == 6
    for one in trainings:
        assert overrides_of(one)["exclude_paths"] == [f"/prompts/{task}.jsonl" for task in measured_tasks()]


def test_the_excluded_files_are_the_ones_that_are_measured(calls: list[list[str]]) -> None:
    (bench,) = [one for one in calls if "harness.bench" in one]
    assert bench[-1] == "max_new_tokens=8"
    with initialize_config_dir(str(ROOT / "conf"), version_base=None):
        for task in measured_tasks():
            config = compose("bench", [*bench[2:], f"task={task}"])
            assert config.task.path == f"/prompts/{task}.jsonl"
