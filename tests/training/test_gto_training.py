"""`method=gto`: resumed to the same bits, a control that is continued training, and a card that says all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.config import ConfigError
from harness.decoding.loop import DecodingLoop
from harness.drafting.trees import DynamicTree
from harness.target.model import Target
from harness.training.features import Features
from harness.training.folder import CURVES, HEAD
from harness.training.job import run_training
from harness.training.trainer import Trainer
from methods.eagle import Eagle
from methods.shared.eagle.training import EagleRecipe
from methods.shared.gto.objective import GroupTrees
from tests.methods.eagle.test_drafter import HEADS, folder_of, model_of, random_weights
from tests.training.test_trainer import config_of, overrides, quiet, samples, training


def trainer(tmp_path: Path, name: str, weight: float | None = 0.5) -> Trainer:
    engine = DecodingLoop(Target(model_of("llama")), (), 512, timed=False)
    objective = None if weight is None else GroupTrees(weight=weight, num_groups=3, group_size=3)
    drafter = Eagle(
        architecture="eagle3",
        tree=DynamicTree(total_token=6, depth=2, top_k=2),
        head=folder_of(random_weights(HEADS["eagle3"]), tmp_path),
        recipe=EagleRecipe(row_share=0.7),
        objective=objective,
    )
    drafter.bind(engine.target)
    features = Features(engine.target, drafter.taps)
    return Trainer(engine, drafter, training(), samples(), tmp_path / name, {"a": 1}, features)


def weights(one: Trainer) -> dict[str, torch.Tensor]:
    return dict(one.student.state_dict())


def assert_equal(one: Trainer, other: Trainer) -> None:
    for name, tensor in weights(one).items():
        assert torch.equal(tensor, weights(other)[name]), name


def test_a_killed_training_is_resumed_to_the_same_weights_and_curves(tmp_path: Path) -> None:
    whole = trainer(tmp_path, "whole")
    whole.run(quiet, quiet)

    class Killed(Exception):
        pass

    def kill(numbers: Any, step: int) -> None:
        if step == 5:
            raise Killed

    with pytest.raises(Killed):
        trainer(tmp_path, "broken").run(quiet, kill)
    torch.manual_seed(99)
    again = trainer(tmp_path, "broken")
    assert again.progress.step == 4
    again.run(quiet, quiet)
    assert_equal(whole, again)
    curves = [
        [json.loads(line) for line in (tmp_path / name / CURVES).read_text().splitlines()]
        for name in ("whole", "broken")
    ]
    assert curves[0] == curves[1]
    assert any(line.get("tree_gain") for line in curves[0]), "trees have moved off the reference's"
    assert any("held_out/chain_pruned" in line for line in curves[0])


def test_the_control_is_continued_training_on_the_same_tokens(tmp_path: Path) -> None:
    def trained_with(name: str, weight: float | None) -> Trainer:
        # Made and run one after the other: a trainer seeds the generator that its losses draw from.
        one = trainer(tmp_path, name, weight)
        one.run(quiet, quiet)
        return one

    control, continued = trained_with("control", 0.0), trained_with("none", None)
    trained = trained_with("gto", 0.5)
    assert_equal(control, continued)
    assert control.progress.num_tokens == trained.progress.num_tokens
    assert not torch.equal(weights(control)["fc.weight"], weights(trained)["fc.weight"])


def test_the_command_trains_a_head_on_and_its_card_has_the_objective(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ConfigError, match=r"^start=random"):
        run_training(config_of(*overrides(tmp_path, "method=gto")))
    run_training(config_of(*overrides(tmp_path, "method=eagle3", "training.num_steps=1")))
    head = json.loads(capsys.readouterr().out)["head"]
    more = ["method=gto", f"start={head}", f"out={tmp_path / 'gto'}", "methods.gto.objective.group_size=2"]
    run_training(config_of(*overrides(tmp_path, *more)))
    assert json.loads(capsys.readouterr().out)["steps"] == 2
    card = json.loads((tmp_path / "gto" / HEAD / "card.json").read_text())
    assert card["method"] == "gto"
    assert card["training"]["objective"]["group_size"] == 2
    assert card["training"]["start"]["path"] == head
    assert card["training"]["tree_node_sum"] > 0
