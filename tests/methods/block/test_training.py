"""Block drafters learn what they are shown, from the blocks that drafting would ask for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from harness.config import ConfigError
from harness.target.model import Target
from methods.dflash import DFlash
from methods.shared.block.learning.labels import draw_anchors, labels_of
from methods.shared.block.learning.losses import length_weights
from methods.shared.block.learning.training import BlockRecipe
from tests.methods.block.learning import STEP, losses_of_three_trainings, overfit, tau, texts
from tests.methods.eagle.test_training import row_of
from tests.support.targets import tiny_model

DSPARK = BlockRecipe(ce=0.1, tv=1.8, confidence=1.0)


def student(kind: Any, **settings: Any) -> tuple[DFlash, Target, Any]:
    target = Target(tiny_model("llama"))
    drafter = DFlash(kind=kind, head="random", num_layers=2, block_size=5, **settings)
    drafter.bind(target)
    row = row_of(target, drafter.taps, texts(target), 6)
    return drafter, target, row


def test_labels_end_with_the_document_and_with_the_first_token_that_is_not_learned() -> None:
    ids = torch.arange(10, 22)
    documents = torch.tensor([0] * 6 + [1] * 6)
    supervised = torch.ones(12, dtype=torch.bool)
    supervised[9] = False
    labels = labels_of(ids, torch.tensor([2, 4, 7]), 3, supervised, documents)
    assert labels.tokens[0].tolist() == [13, 14, 15]
    assert labels.previous[0].tolist() == [12, 13, 14]
    assert labels.places[0].tolist() == [2, 3, 4]
    assert labels.counts.tolist() == [[True, True, True], [True, False, False], [True, False, False]]


def test_anchors_are_learned_tokens_with_a_learned_one_behind_them() -> None:
    supervised = torch.tensor([0, 0, 1, 1, 1, 0, 1, 1, 1, 1]).bool()
    documents = torch.tensor([0] * 8 + [1] * 2)
    every = draw_anchors(supervised, 99, documents)
    assert every.tolist() == [2, 3, 6, 8]
    some = draw_anchors(supervised, 2, documents, torch.Generator().manual_seed(0))
    assert len(some) == 2
    assert set(some.tolist()) <= set(every.tolist())


def test_a_slot_weighs_what_it_adds_to_the_expected_length() -> None:
    confidence = torch.tensor([[0.5, 0.5, 0.9]])
    counts = torch.tensor([[True, True, False]])
    # Kept up to slot 0 with 0.75, up to slot 1 with 0.5625.
    assert length_weights(confidence, counts, 0.5).tolist() == [[0.75 + 0.5625, 0.5625, 0.0]]


@pytest.mark.parametrize("draft_vocab_size", [None, 40])
@pytest.mark.parametrize(("kind", "recipe"), [("dflash", BlockRecipe()), ("dspark", DSPARK)])
def test_a_head_overfitted_on_four_texts_drafts_them(
    kind: Any, recipe: BlockRecipe, draft_vocab_size: int | None, tmp_path: Path
) -> None:
    drafter, target, row = student(kind, recipe=recipe, draft_vocab_size=draft_vocab_size)
    counts = torch.bincount(row.ids, minlength=target.vocab_size)
    assert int((counts > 0).sum()) <= 40, "every token of the texts can be drafted"
    numbers = overfit(drafter, row, counts, 120)
    assert numbers["accuracy_0"] > 0.9
    assert tau(drafter, target) > 2.5
    drafter.export(tmp_path, {})
    again = DFlash(kind=kind, head=str(tmp_path))
    again.bind(target)
    assert tau(again, target) == pytest.approx(tau(drafter, target), rel=0.1)
    again.check(texts(target))
    # Its taps are outputs; read as inputs, each is the output of the block before.
    wrong = DFlash(kind=kind, head=str(tmp_path), tap_point="input")
    wrong.bind(target)
    with pytest.raises(ConfigError, match=r"^tap_point: fed the inputs of .* type tap_point=output"):
        wrong.check(texts(target))


def test_a_smaller_draft_vocabulary_is_read_with_the_rows_of_the_target(tmp_path: Path) -> None:
    drafter, target, row = student("dspark", draft_vocab_size=20)
    counts = torch.arange(target.vocab_size).remainder(37)
    drafter.begin_training(counts, [row], 0)
    drafter.export(tmp_path, {})
    assert not [name for name in load_file(tmp_path / "model.safetensors") if "lm_head" in name]
    again = DFlash(kind="dspark", head=str(tmp_path))
    again.bind(target)
    ids = again.draft_vocabulary
    assert ids is not None
    assert sorted(counts[ids].tolist()) == sorted(counts.sort(descending=True).values[:20].tolist())
    states = torch.randn(2, 3, target.config.hidden_size)
    assert torch.allclose(again.network.logits(states, target), target.lm_head(states)[..., ids], atol=1e-5)


def test_a_slot_whose_token_cannot_be_drafted_does_not_count() -> None:
    drafter, target, row = student("dflash", draft_vocab_size=1)
    counts = torch.zeros(target.vocab_size)
    counts[next(token for token in range(target.vocab_size) if token not in row.ids.tolist())] = 1
    drafter.begin_training(counts, [row], 0)
    assert float(drafter.loss([row], STEP).total.detach()) == 0.0


def test_more_drafted_tokens_than_the_target_has_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"^draft_vocab_size=999: at most the target's, \d+"):
        student("dflash", draft_vocab_size=999)


def test_a_training_goes_on_from_weights_and_random_state_alone() -> None:
    first, second, resumed = losses_of_three_trainings(
        lambda: student("dspark", recipe=BlockRecipe(num_anchors=3))
    )
    assert first == second
    assert len(set(first)) == 4, "every loss draws anew"
    assert resumed == second[-1:]


def test_a_head_that_is_trained_on_begins_as_it_was(tmp_path: Path) -> None:
    drafter, target, row = student("dflash")
    drafter.begin_training(torch.ones(target.vocab_size), [row], 0)
    drafter.export(tmp_path, {})
    again = DFlash(kind="dflash", head=str(tmp_path))
    again.bind(target)
    again.begin_training(torch.ones(target.vocab_size), [row], 9)
    losses = []
    for one in (drafter, again):
        torch.manual_seed(0)
        losses.append(float(one.loss([row], STEP).total.detach()))
    assert losses[0] == pytest.approx(losses[1], rel=1e-2)


def test_a_row_without_an_answer_has_a_loss_of_nothing() -> None:
    drafter, target, row = student("dflash")
    drafter.begin_training(torch.ones(target.vocab_size), [row], 0)
    row.answer.zero_()
    assert float(drafter.loss([row], STEP).total.detach()) == 0.0


def test_a_head_whose_conventions_would_be_lost_is_not_trained(tmp_path: Path) -> None:
    drafter, target, row = student("dflash")
    drafter.begin_training(torch.ones(target.vocab_size), [row], 0)
    drafter.export(tmp_path, {})
    other = DFlash(kind="dflash", head=str(tmp_path), tap_point="input")
    other.bind(target)
    with pytest.raises(ConfigError, match=r"start=.* cannot be trained on.*tap_point=input"):
        other.begin_training(torch.ones(target.vocab_size), [row], 0)


def test_a_head_with_convolutions_is_not_trained() -> None:
    drafter, target, row = student("dflash2")
    with pytest.raises(ConfigError, match="only dflash and dspark"):
        drafter.begin_training(torch.ones(target.vocab_size), [row], 0)
