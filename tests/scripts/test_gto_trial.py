"""The trial of GTO trains on no prompt that it measures."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

ROOT = Path(__file__).parents[2]


@pytest.fixture
def calls(tmp_path: Path) -> list[list[str]]:
    """Arguments of every Python command of the trial, none of which is run."""
    log, python = tmp_path / "calls", tmp_path / "python"
    python.write_text(
        f"#!{sys.executable}\nimport json, sys\n"
        f"print(json.dumps(sys.argv[1:]), file=open({str(log)!r}, 'a'))\n"
    )
    python.chmod(0o755)
    script = ROOT / "scripts" / "gto_trial.sh"
    subprocess.run(
        ["bash", script, "dialogues.jsonl", "/prompts", "out", "max_new_tokens=8"],
        env={**os.environ, "PYTHON": str(python)},
        check=True,
    )
    return [json.loads(line) for line in log.read_text().splitlines()]


def measured_tasks() -> list[str]:
    experiment = OmegaConf.load(ROOT / "conf" / "experiment" / "gto_trial.yaml")
    tasks: str = OmegaConf.select(experiment, "hydra.sweeper.params.task")
    return tasks.split(",")


def test_every_training_excludes_the_prompts_of_every_measured_task(calls: list[list[str]]) -> None:
    trainings = [one for one in calls if "harness.train" in one]
    assert len(trainings) == 6
    for one in trainings:
        overrides = [word for word in one[2:] if "=" in word]
        excluded = {o.key_or_group: o.value() for o in OverridesParser.create().parse_overrides(overrides)}
        assert excluded["exclude_paths"] == [f"/prompts/{task}.jsonl" for task in measured_tasks()]


def test_the_excluded_files_are_the_ones_that_are_measured(calls: list[list[str]]) -> None:
    (bench,) = [one for one in calls if "harness.bench" in one]
    assert bench[-1] == "max_new_tokens=8"
    with initialize_config_dir(str(ROOT / "conf"), version_base=None):
        for task in measured_tasks():
            config = compose("bench", [*bench[2:], f"task={task}"])
            assert config.task.path == f"/prompts/{task}.jsonl"
