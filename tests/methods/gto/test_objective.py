"""The term of GTO: nothing at the start, better trees after training, a reference that stays as it was."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from harness.config import ConfigError
from harness.drafting.trainable import TrainingRow, TrainingStep
from harness.drafting.trees import DynamicTree
from harness.target.model import Target
from methods.eagle import Eagle
from methods.shared.eagle.training import EagleRecipe, counting_rows
from methods.shared.gto.objective import GroupTrees
from tests.methods.eagle.test_drafter import HEADS, VOCAB, folder_of, model_of, random_weights
from tests.methods.eagle.test_training import drafter_for, row_of

DOCUMENTS = [[seed, seed * 5 % VOCAB, *(place * seed % VOCAB for place in range(16))] for seed in (1, 5, 7)]


def training(tmp_path: Any, architecture: Any = "eagle3", **objective: Any) -> tuple[Eagle, TrainingRow]:
    target = Target(model_of("llama"))
    usual = {"num_groups": 3, "group_size": 4, "reward": "node_sum"}
    drafter = Eagle(
        architecture=architecture,
        tree=DynamicTree(total_token=8, depth=2, top_k=3),
        head=folder_of(random_weights(HEADS[architecture]), tmp_path),
        recipe=EagleRecipe(ttt_length=3, noise=0.0),
        objective=GroupTrees(**{**usual, **objective}),
    )
    drafter.bind(target)
    row = row_of(target, drafter_for(target, architecture).taps, DOCUMENTS, 3)
    drafter.begin_training(torch.bincount(row.ids, minlength=VOCAB), [row], seed=0)
    return drafter, row


def step(number: int) -> TrainingStep:
    return TrainingStep(number=number, num_steps=100)


@pytest.mark.parametrize("architecture", ["eagle", "eagle3"])
def test_at_the_start_the_trees_are_the_references_and_add_no_gradient(
    architecture: str, tmp_path: Any
) -> None:
    gradients = []
    for weight in (0.5, 0.0):
        drafter, row = training(tmp_path, architecture, weight=weight)
        loss = drafter.loss([row], step(0))
        loss.total.backward()  # type: ignore[no-untyped-call]
        gradients.append([p.grad for p in drafter._student.parameters() if p.requires_grad])
        if weight:
            assert loss.numbers["tree_gain"] == loss.numbers["tree_loss"] == 0
            assert loss.numbers["tree_node_sum"] == loss.numbers["tree_node_sum_reference"] > 0
            assert loss.numbers["tree_ratio"] == 1
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("architecture", ["eagle", "eagle3"])
def test_trained_on_a_row_its_trees_are_worth_more_and_the_reference_stays(
    architecture: str, tmp_path: Any
) -> None:
    drafter, row = training(tmp_path, architecture)
    drafter.recipe.ce_weight = 1.0
    frozen = {name: one.clone() for name, one in drafter._reference.head.state_dict().items()}
    trained = [p for p in drafter._student.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=4e-3)
    with torch.no_grad():
        before = drafter.loss([row], step(0)).numbers
    for number in range(40):
        loss = drafter.loss([row], step(number))
        optimiser.zero_grad()
        loss.total.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    with torch.no_grad():
        after = drafter.loss([row], step(0)).numbers
    assert after["tree_node_sum"] > before["tree_node_sum"] + 0.05
    assert after["tree_gain"] == pytest.approx(after["tree_node_sum"] - before["tree_node_sum"], abs=1e-6)
    assert after["tree_node_sum_reference"] == pytest.approx(before["tree_node_sum"], abs=1e-6)
    for name, tensor in drafter._reference.head.state_dict().items():
        assert torch.equal(tensor, frozen[name]), name
    assert all(p.grad is None and not p.requires_grad for p in drafter._reference.head.parameters())


@pytest.mark.parametrize("reward", ["lse", "max", "mean", "node_sum"])
def test_a_step_along_its_gradient_lowers_the_term(reward: Any, tmp_path: Any) -> None:
    """From a head that has moved off its reference. The step is so small that the trees stay the same."""
    drafter, row = training(tmp_path, num_groups=9, clip=0.9, reward=reward)
    objective = drafter.objective
    assert objective is not None
    trained = [p for p in drafter._student.parameters() if p.requires_grad]
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in trained:
            parameter += 0.02 * torch.randn_like(parameter)

    def term() -> Any:
        counts = counting_rows(row, 0)
        return objective.term(drafter._trees, drafter._reference, drafter._target, row, counts, "0")

    before = term()
    assert before.numbers["tree_gain"] != 0
    before.loss.backward()
    squared = sum(float((p.grad**2).sum()) for p in trained if p.grad is not None)
    with torch.no_grad():
        for parameter in trained:
            if parameter.grad is not None:
                parameter -= 1e-4 / squared * parameter.grad
    after = term()
    assert after.numbers["tree_node_sum"] == pytest.approx(before.numbers["tree_node_sum"], abs=1e-6)
    assert float((before.loss - after.loss).detach()) == pytest.approx(1e-4, rel=0.3)


def test_groups_follow_from_seed_step_and_row_and_are_the_same_in_every_evaluation(tmp_path: Any) -> None:
    drafter, row = training(tmp_path, num_groups=1)
    state = torch.get_rng_state()
    seen = [drafter.loss([row], step(number)).numbers["tree_node_sum"] for number in (0, 1, 2, 3, 0)]
    assert seen[0] == seen[4]
    assert len(set(seen)) > 1
    with torch.no_grad():
        evaluated = {drafter.loss([row], step(number)).numbers["tree_node_sum"] for number in range(4)}
    assert len(evaluated) == 1
    assert torch.equal(torch.get_rng_state(), state), "the token loss of either arm draws the same numbers"


def test_the_control_grows_no_tree_in_training_and_is_evaluated_alike(tmp_path: Any) -> None:
    drafter, row = training(tmp_path, weight=0.0)
    assert not [name for name in drafter.loss([row], step(0)).numbers if name.startswith("tree_")]
    with torch.no_grad():
        numbers = drafter.loss([row], step(0)).numbers
    assert 0 <= numbers["chain_pruned"] <= 1
    assert 0 <= numbers["chain_accepted"] <= 1
    assert 1 <= numbers["chain_tau"] <= numbers["tree_tau"]


def test_a_tree_that_holds_the_likeliest_path_loses_nothing_to_it(tmp_path: Any) -> None:
    drafter, row = training(tmp_path)
    drafter.tree = DynamicTree(total_token=3, depth=1, top_k=1)
    drafter._trees = drafter._grown_by(drafter._student)
    with torch.no_grad():
        numbers = drafter.loss([row], step(0)).numbers
    assert numbers["chain_pruned"] == 0
    assert numbers["chain_accepted"] == 1
    assert numbers["chain_tau"] == numbers["tree_tau"]


def test_a_row_without_room_for_a_group_has_the_loss_of_its_tokens_alone(tmp_path: Any) -> None:
    drafter, row = training(tmp_path, group_size=30)
    loss = drafter.loss([row], step(0))
    assert loss.numbers["token_loss"] == float(loss.total.detach())


def test_without_a_head_to_compare_with_there_is_nothing_to_train() -> None:
    target = Target(model_of("llama"))
    drafter = drafter_for(target, objective=GroupTrees())
    row = row_of(target, drafter.taps, DOCUMENTS, 3)
    with pytest.raises(ConfigError, match="start=FOLDER"):
        drafter.begin_training(torch.ones(VOCAB), [row], seed=0)


def test_a_group_of_one_has_no_sample_deviation() -> None:
    with pytest.raises(ValueError, match="type ddof=0"):
        GroupTrees(group_size=1, ddof=1)
