"""FastEagle's network and tree: levels do not depend on later ones, and all side nodes are leaves."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from harness.config import ConfigError
from harness.drafting.trees import Proposals
from methods.fasteagle.tree import BackboneTree
from tests.methods.one_call.drafters import bound
from tests.support.targets import VOCAB


class Levels:
    """A grower with fixed guesses: tokens and probabilities [1, N, c]."""

    context = 0.0

    def __init__(self, probs: list[list[float]]) -> None:
        self._log_probs = torch.tensor([probs]).log()

    def levels(self, num_children: int) -> Proposals:
        shape = self._log_probs[..., :num_children].shape
        return Proposals(torch.arange(shape.numel()).view(shape), self._log_probs[..., :num_children])

    def start(self, num_children: int) -> Proposals:
        raise AssertionError("the tree asks for all levels at once")

    def expand(self, tokens: Tensor, parents: Tensor, num_children: int) -> Proposals:
        raise AssertionError("the tree asks for all levels at once")


PROBS = [[0.5, 0.3, 0.1], [0.4, 0.3, 0.2], [0.9, 0.05, 0.01]]


def nodes(tree: BackboneTree) -> dict[tuple[int, ...], float]:
    """The confidence of every node by the tokens on its path."""
    draft = tree.grow(Levels(PROBS))
    assert draft.confidence is not None
    tokens, parents = draft.tokens[0].tolist(), draft.parents[0].tolist()
    paths: list[tuple[int, ...]] = []
    for token, parent in zip(tokens, parents, strict=True):
        paths.append((*(paths[parent] if parent >= 0 else ()), token))
    return dict(zip(paths, draft.confidence[0].tolist(), strict=True))


def test_the_likeliest_token_of_every_level_carries_on_and_the_others_are_leaves() -> None:
    found = nodes(BackboneTree(level_widths=(3,)))
    expected = {(0,): 0.5, (1,): 0.3, (2,): 0.1}
    expected |= {(0, 3): 0.2, (0, 4): 0.15, (0, 5): 0.1}
    expected |= {(0, 3, 6): 0.18, (0, 3, 7): 0.01, (0, 3, 8): 0.002}
    assert found == pytest.approx(expected)


def test_a_budget_drops_the_least_likely_side_nodes_and_keeps_the_chain() -> None:
    assert set(nodes(BackboneTree(budget=4, level_widths=(3,)))) == {(0,), (1,), (0, 3), (0, 3, 6)}
    # (0, 4) is less likely than (0, 3, 6), but (1,) is not.
    competing = nodes(BackboneTree(budget=3, level_widths=(3,), keep_backbone=False))
    assert set(competing) == {(0,), (1,), (0, 3)}
    assert set(nodes(BackboneTree(budget=2, level_widths=(3,)))) == {(0,), (0, 3)}


def test_levels_may_have_widths_of_their_own() -> None:
    found = nodes(BackboneTree(level_widths=(3, 1)))
    assert set(found) == {(0,), (1,), (2,), (0, 3), (0, 3, 6)}
    chain = BackboneTree(level_widths=(1,)).grow(Levels(PROBS))
    assert chain.is_chain
    assert chain.tokens.tolist() == [[0, 1, 2]]


def test_a_drafter_without_levels_is_refused() -> None:
    grower: Any = object()
    with pytest.raises(ConfigError, match=r"methods\.NAME\.tree=dynamic"):
        BackboneTree().grow(grower)


@torch.no_grad()
def test_a_levels_guesses_do_not_depend_on_later_levels() -> None:
    drafter = bound("fasteagle", num_levels=4)
    features = torch.randn(1, 5, drafter.feature_shape[0], generator=torch.Generator().manual_seed(3))
    tokens = torch.tensor([[1, 2, 3, 4, 5]])

    def guesses() -> Proposals:
        drafter.reset(1)
        growth = drafter.new_growth()
        growth.feed(features, tokens, [5])
        found: Proposals = growth.levels(4)
        return found

    whole, network = guesses(), drafter.network
    network.layers = nn.ModuleList(list(network.layers)[:2])
    part = guesses()
    assert part.tokens.shape == (1, 2, 4)
    assert torch.equal(part.tokens, whole.tokens[:, :2])
    torch.testing.assert_close(part.log_probs, whole.log_probs[:, :2])


@torch.no_grad()
def test_a_draft_vocabulary_has_the_rows_of_the_targets_head() -> None:
    drafter = bound("fasteagle", draft_vocab_size=9)
    features = torch.randn(1, 2, drafter.feature_shape[0], generator=torch.Generator().manual_seed(3))
    drafter.reset(1)
    growth = drafter.new_growth()
    growth.feed(features, torch.tensor([[1, 2]]), [2])
    ids = drafter.network.drafted_ids
    assert len(ids) == 9 < VOCAB
    for level in range(3):
        logits = drafter._target.lm_head(drafter.network.normed(growth.outputs[0, 0, level], level))[ids]
        best = logits.log_softmax(-1).topk(3)
        assert torch.equal(growth.levels(3).tokens[0, level], ids[best.indices])
        torch.testing.assert_close(growth.levels(3).log_probs[0, level], best.values, rtol=1e-4, atol=1e-4)
