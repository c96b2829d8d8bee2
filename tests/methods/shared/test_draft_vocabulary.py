"""The target's LM head over a draft vocabulary, as torch multiplies and prepared for few rows."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from harness.runtime.packed_linear import PackedLinear, layout
from harness.target.model import Target
from methods.shared.draft_vocabulary import DraftVocabulary
from tests.methods.one_call.drafters import bound
from tests.support.targets import VOCAB, tiny_model


@pytest.fixture
def packed() -> Target:
    """A target that packs its linear layers."""
    model = copy.deepcopy(tiny_model("llama"))
    if layout(model) != "packed":
        pytest.skip("this build of torch cannot pack linear layers on a CPU")
    return Target(model, linear="packed")


def vocabulary_over(ids: torch.Tensor, target: Target) -> DraftVocabulary:
    head: Any = SimpleNamespace(
        d2t=ids - torch.arange(len(ids)),
        shape=SimpleNamespace(draft_vocab_size=len(ids), vocab_size=VOCAB),
    )
    return DraftVocabulary(head, target)


def test_logits_and_their_gradient_are_those_of_the_targets_lm_head_prepared_or_not(packed: Target) -> None:
    ids = torch.tensor([3, 5, 8, 9, 40])
    vocabulary, plain = vocabulary_over(ids, packed), Target(tiny_model("llama"))
    size = plain.config.hidden_size
    states = torch.randn(3, size, generator=torch.Generator().manual_seed(0))
    expected = plain.lm_head(states)[:, ids]
    through = plain.lm_head(torch.eye(size))[:, ids].sum(1).expand(3, -1)
    for _ in ("as torch multiplies", "prepared"):
        with torch.no_grad():
            torch.testing.assert_close(vocabulary.logits(states), expected, rtol=1e-4, atol=1e-4)
        asked = states.clone().requires_grad_()
        vocabulary.logits(asked).sum().backward()
        torch.testing.assert_close(asked.grad, through, rtol=1e-4, atol=1e-4)
        vocabulary.prepare()


def test_fasteagle_multiplies_its_vocabulary_as_the_targets_layers_do(packed: Target) -> None:
    drafter = bound("fasteagle", packed, draft_vocab_size=24)
    (layer,) = drafter.one_call_steps.vocabulary._lm_head
    assert isinstance(layer, PackedLinear)
    assert layer.out_features == 24


def test_tokens_that_cannot_be_drafted_have_no_index() -> None:
    vocabulary = vocabulary_over(torch.tensor([3, 5, 8]), Target(tiny_model("llama")))
    assert vocabulary.index(torch.tensor([5, 4, 8])).tolist() == [1, -1, 2]
