"""A P-EAGLE head learns what it is shown, from the rows that drafting would ask for."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import torch

from harness.drafting.drafter import Outcome
from harness.drafting.trainable import TrainingRow
from harness.target.model import Target
from methods.peagle import PEagle
from methods.peagle.training import PEagleRecipe, rows_of, states_of
from methods.shared.block.learning.labels import labels_of
from tests.methods.block.learning import STEP, losses_of_three_trainings, overfit, tau, texts
from tests.methods.eagle.test_training import row_of
from tests.support.targets import tiny_model

DOCUMENTS = [[3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5], [2, 7, 1, 8, 2, 8, 1, 8]]


def student(
    documents: list[list[int]] | None = None, **settings: object
) -> tuple[PEagle, Target, TrainingRow]:
    target = Target(tiny_model("llama"))
    drafter = PEagle(head="random", num_layers=2, draft_length=4, **settings)  # type: ignore[arg-type]
    drafter.bind(target)
    return drafter, target, row_of(target, drafter.taps, documents or texts(target), 6)


@torch.no_grad()
def test_a_rollout_in_training_is_what_a_draft_computes() -> None:
    drafter, target, row = student(DOCUMENTS)
    anchors = torch.arange(len(row.ids) - 1)
    anchors, depths = anchors.repeat(4), torch.arange(4).repeat_interleave(len(anchors))
    features = torch.cat(row.taps, dim=-1)
    states = states_of(drafter.network, features, row, target, anchors, depths, drafter.mask)
    logits = drafter.network.logits(states, target).view(4, -1, target.vocab_size)
    begin = 0
    for tokens in DOCUMENTS:
        for place in range(len(tokens) - 1):
            drafter.reset(1)
            taps = [state[begin : begin + place + 1][None] for state in row.taps]
            outcome = Outcome(committed=[tokens[: place + 1]], pending=[tokens[place + 1]], taps=taps)
            drafter.observe(outcome)
            drafter.propose([9])
            torch.testing.assert_close(logits[:, begin + place], drafter.logits[0], atol=1e-4, rtol=1e-4)
        begin += len(tokens)


def test_rollouts_are_dropped_depth_by_depth_and_end_with_the_answer() -> None:
    torch.manual_seed(0)
    ids, document = torch.arange(60), torch.tensor([0] * 30 + [1] * 30)
    answer = (torch.arange(60) % 30) >= 10
    labels = labels_of(ids, torch.arange(1, 60), 6, answer, document)
    anchors, depths = rows_of(labels, PEagleRecipe(keep=0.5, floor=0.3, max_rollouts=20))
    of_depth = [set(anchors[depths == depth].tolist()) for depth in range(6)]
    assert of_depth[0] == set(range(59))
    assert all(shorter >= longer for shorter, longer in pairwise(of_depth))
    assert len(of_depth[1]) == 20
    assert len(of_depth[2]) <= 10
    assert 0 < len(of_depth[5]) <= 6
    for depth in range(1, 6):
        assert all(labels.counts[anchor, depth] for anchor in of_depth[depth])


@pytest.mark.parametrize("draft_vocab_size", [None, 40])
def test_a_head_overfitted_on_four_texts_drafts_them(draft_vocab_size: int | None, tmp_path: Path) -> None:
    drafter, target, row = student(draft_vocab_size=draft_vocab_size)
    counts = torch.bincount(row.ids, minlength=target.vocab_size).float()
    numbers = overfit(drafter, row, counts, 100)
    assert numbers["accuracy_0"] > 0.85
    assert tau(drafter, target) > 2
    drafter.export(tmp_path, {})
    again = PEagle(head=str(tmp_path), draft_length=4)
    again.bind(target)
    assert again.card()["training"]["recipe"]["keep"] == 0.8
    assert tau(again, target) == pytest.approx(tau(drafter, target), rel=0.1)


def test_a_training_goes_on_from_weights_and_random_state_alone() -> None:
    first, second, resumed = losses_of_three_trainings(lambda: student(recipe=PEagleRecipe(max_rollouts=5)))
    assert first == second
    assert len(set(first)) == 4, "every loss draws anew"
    assert resumed == second[-1:]


def test_a_head_that_is_trained_on_begins_as_it_was_whichever_side_of_a_block_it_taps(tmp_path: Path) -> None:
    drafter, target, row = student(aux_layers=(0, 0, 1), aux_convention="output")
    drafter.begin_training(torch.ones(target.vocab_size), [row], 0)
    drafter.export(tmp_path, {})
    again = PEagle(head=str(tmp_path), draft_length=4)
    again.bind(target)
    assert [(tap.layer, tap.point) for tap in again.taps] == [(1, "input"), (1, "input"), (2, "input")]
    again.begin_training(torch.ones(target.vocab_size), [row], 9)
    losses = []
    for one in (drafter, again):
        torch.manual_seed(0)
        losses.append(float(one.loss([row], STEP).total.detach()))
    assert losses[0] == pytest.approx(losses[1], rel=1e-2)


def test_a_row_without_an_answer_has_a_loss_of_nothing() -> None:
    drafter, target, row = student()
    drafter.begin_training(torch.ones(target.vocab_size), [row], 0)
    row.answer.zero_()
    assert float(drafter.loss([row], STEP).total.detach()) == 0.0
