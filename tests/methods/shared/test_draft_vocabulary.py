"""The target's LM head over a draft vocabulary, as torch multiplies and prepared for few rows."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

from harness.runtime.packed_linear import PackedLinear
from methods.shared.draft_vocabulary import DraftVocabulary
from tests.support.targets import VOCAB, engine


def vocabulary_over(ids: torch.Tensor) -> DraftVocabulary:
    head: Any = SimpleNamespace(
        d2t=ids - torch.arange(len(ids)),
        shape=SimpleNamespace(draft_vocab_size=len(ids), vocab_size=VOCAB),
    )
    return DraftVocabulary(head, engine("llama").target)


def test_logits_and_their_gradient_are_those_of_the_targets_lm_head_prepared_or_not() -> None:
    ids = torch.tensor([3, 5, 8, 9, 40])
    vocabulary = vocabulary_over(ids)
    target = engine("llama").target
    size = target.config.hidden_size
    states = torch.randn(3, size, generator=torch.Generator().manual_seed(0))
    expected = target.lm_head(states)[:, ids]
    through = target.lm_head(torch.eye(size))[:, ids].sum(1).expand(3, -1)
    for _ in ("as torch multiplies", "prepared"):
        with torch.no_grad():
            torch.testing.assert_close(vocabulary.logits(states), expected, rtol=1e-4, atol=1e-5)
        asked = states.clone().requires_grad_()
        vocabulary.logits(asked).sum().backward()
        torch.testing.assert_close(asked.grad, through, rtol=1e-4, atol=1e-5)
        vocabulary.prepare()


def test_prepared_it_multiplies_as_the_targets_layers_do() -> None:
    vocabulary = vocabulary_over(torch.arange(0, VOCAB, 2))
    target: Any = vocabulary._target
    (before,) = vocabulary._lm_head
    vocabulary.prepare()
    (after,) = vocabulary._lm_head
    assert not isinstance(before, PackedLinear)
    assert isinstance(after, PackedLinear) == (target.linear == "packed")


def test_tokens_that_cannot_be_drafted_have_no_index() -> None:
    vocabulary = vocabulary_over(torch.tensor([3, 5, 8]))
    assert vocabulary.index(torch.tensor([5, 4, 8])).tolist() == [1, -1, 2]
