"""SpecBlock's ablations differ by one part each, and are measured on prompts that no training saw."""

from __future__ import annotations

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from tests.scripts.recorded import ROOT, commands_of, overrides_of


@pytest.fixture
def calls(tmp_path: Path) -> list[list[str]]:
    arguments = ("dialogues.jsonl", "/prompts", str(tmp_path), "training.seed=3")
    return commands_of(tmp_path, "specblock_ablations.sh", *arguments)


def test_every_arm_lacks_one_part_and_is_trained_alike(calls: list[list[str]]) -> None:
    trainings = [overrides_of(one) for one in calls if "harness.train" in one]
    full = {key: value for key, value in trainings[0].items() if key != "out"}
    assert full["training.seed"] == 3
    parts = [
        {key: value for key, value in one.items() if key != "out" and (key, value) not in full.items()}
        for one in trainings
    ]
    assert parts == [
        {},
        {"methods.specblock.shift": False},
        {"methods.specblock.broadcast": False},
        {"methods.specblock.recipe.valid_prefix": False},
    ]


def test_measured_are_the_trained_heads_on_prompts_that_were_excluded(calls: list[list[str]]) -> None:
    trainings = [overrides_of(one) for one in calls if "harness.train" in one]
    (bench,) = [one for one in calls if "harness.bench" in one]
    experiment = OmegaConf.load(ROOT / "conf" / "experiment" / "specblock_ablations.yaml")
    tasks: str = OmegaConf.select(experiment, "hydra.sweeper.params.task")
    with initialize_config_dir(str(ROOT / "conf"), version_base=None):
        configs = [compose("bench", [*bench[2:], f"task={task}"]) for task in tasks.split(",")]
    assert trainings[0]["exclude_paths"] == [config.task.path for config in configs]
    methods = configs[0].methods
    heads = {method.head.removesuffix("/head") for name, method in methods.items() if name != "vanilla"}
    assert heads == {one["out"] for one in trainings}
    assert {method.tree.budget for name, method in methods.items() if name != "vanilla"} == {60}
    assert methods.no_ranks.head == methods.specblock.head
