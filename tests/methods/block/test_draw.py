"""Tokens follow the distribution that is stated, and what a head adds vanishes with its weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from harness.target.model import Target
from methods.ddtree.tree import best_first
from methods.shared.block.chains import Noise, chain_of
from methods.shared.block.draw import corrected, draw, pick
from tests.methods.block.heads import PARTS, network_of
from tests.support.targets import VOCAB, tiny_model


def target() -> Any:
    return Target(tiny_model("llama"))


def states(num_rows: int = 2, num_slots: int = 4) -> Tensor:
    return torch.randn(num_rows, num_slots, 64, generator=torch.Generator().manual_seed(5))


ANCHORS = torch.tensor([7, 9])


def test_noise_points_at_each_place_as_often_as_its_probability() -> None:
    logits = torch.tensor([0.3, -1.0, 2.0, -torch.inf, 0.0])
    noise = (torch.arange(20000) + 0.5).double() / 20000
    places, likelihood, probs = pick(logits.expand(20000, -1), 0.7, noise)
    assert probs is not None
    frequencies = torch.bincount(places, minlength=5) / 20000
    assert torch.allclose(frequencies, torch.softmax(logits / 0.7, -1), atol=1e-4)
    assert torch.equal(likelihood, probs.gather(-1, places[:, None])[:, 0])


@pytest.mark.parametrize("noise", [0.0, 1 - 1e-16])
def test_no_noise_points_at_a_place_without_probability(noise: float) -> None:
    logits = torch.tensor([[-torch.inf, 1.0, 1.0, -torch.inf]])
    place, likelihood, _ = pick(logits, 1.0, torch.tensor([noise], dtype=torch.float64))
    assert likelihood > 0
    assert int(place) in (1, 2)


@torch.no_grad()
@pytest.mark.parametrize("kind", PARTS)
def test_a_token_is_stated_with_the_distribution_it_was_drawn_from(kind: str) -> None:
    network, noise = network_of(**PARTS[kind]), torch.rand(2, 4, dtype=torch.float64)
    drawn = draw(network, target(), states(), ANCHORS, 0.8, noise)
    assert drawn.probs is not None
    assert drawn.probs.shape == (2, 4, VOCAB)
    assert torch.allclose(drawn.probs.sum(-1), torch.ones(2, 4))
    assert torch.allclose(drawn.probs.gather(-1, drawn.tokens[..., None])[..., 0], drawn.likelihood)
    if kind == "dflash2":
        assert int((drawn.probs > 0).sum(-1).max()) <= 4
    else:
        before = torch.cat([ANCHORS[:, None], drawn.tokens[:, :-1]], dim=1)
        logits, confidence = corrected(network, target(), states(), before)
        assert torch.allclose(drawn.probs, torch.softmax(logits / 0.8, -1), atol=1e-6)
        if confidence is None or drawn.confidence is None:
            assert confidence is drawn.confidence
        else:
            assert torch.allclose(confidence, drawn.confidence)


@torch.no_grad()
def test_a_correction_of_nothing_leaves_the_slots_as_they_are() -> None:
    for markov in ("vanilla", "gated", "rnn"):
        network = network_of(**{**PARTS["dspark"], "markov": markov})
        assert network.markov_head is not None
        plain = network.logits(states(), target()).argmax(-1)
        assert not torch.equal(draw(network, target(), states(), ANCHORS, 0.0, None).tokens, plain)
        network.markov_head.markov_w2.weight.zero_()
        assert torch.equal(draw(network, target(), states(), ANCHORS, 0.0, None).tokens, plain)


@torch.no_grad()
def test_a_selector_without_edges_takes_the_likeliest_token() -> None:
    network = network_of(**PARTS["dflash2"])
    assert network.candidate_selector is not None
    plain = network.logits(states(), target()).argmax(-1)
    assert not torch.equal(draw(network, target(), states(), ANCHORS, 0.0, None).tokens, plain)
    network.candidate_selector.successor_codebook.weight.zero_()
    assert torch.equal(draw(network, target(), states(), ANCHORS, 0.0, None).tokens, plain)


@torch.no_grad()
def test_the_end_of_a_draft_does_not_depend_on_the_token_that_it_keeps_or_drops() -> None:
    network = network_of(**PARTS["dspark"])
    noise = torch.rand(2, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    usual = draw(network, target(), states(), ANCHORS, 1.0, noise)
    for slot in range(4):
        other = noise.clone()
        other[:, slot] = 1 - other[:, slot]
        drawn = draw(network, target(), states(), ANCHORS, 1.0, other)
        assert usual.confidence is not None
        assert drawn.confidence is not None
        assert not torch.equal(drawn.tokens[:, slot], usual.tokens[:, slot])
        assert torch.equal(drawn.confidence[:, : slot + 1], usual.confidence[:, : slot + 1])


def test_a_chain_ends_before_the_first_token_below_the_threshold() -> None:
    tokens = torch.arange(8).view(2, 4)
    likely = torch.tensor([[0.9, 0.8, 0.4, 0.9], [0.3, 0.9, 0.9, 0.9]])
    draft = chain_of(tokens, likely, None, 0.5)
    assert draft.size.tolist() == [2, 0]
    assert draft.tokens.tolist() == [[0, 1], [4, 5]]
    assert draft.confidence is not None
    assert torch.allclose(draft.confidence, likely[:, :2].cumprod(-1))
    assert chain_of(tokens, likely, None).size.tolist() == [4, 4]


def test_noise_is_a_sequences_own_and_the_same_again() -> None:
    def drawn(seed: int) -> Tensor:
        noise = Noise(seed)
        noise.reset(3)
        noise.keep([2, 0])
        return noise.draw([5, 5], 4)

    assert torch.equal(drawn(0), drawn(0))
    assert not torch.equal(drawn(0), drawn(1))
    assert not torch.equal(*drawn(0))


def test_the_best_tree_is_the_one_that_enumeration_finds() -> None:
    generator = torch.Generator().manual_seed(2)
    for budget in (1, 3, 6, 12):
        log_probs = torch.randn(2, 3, 5, generator=generator).log_softmax(-1).sort(-1, descending=True).values
        tokens = torch.stack([torch.randperm(VOCAB, generator=generator)[:5] for _ in range(6)]).view(2, 3, 5)
        draft = best_first(tokens, log_probs, budget)
        draft.check(VOCAB)
        for row in range(2):
            every: list[tuple[float, tuple[int, ...]]] = []
            paths: list[tuple[float, tuple[int, ...]]] = [(0.0, ())]
            for slot in range(3):
                paths = [
                    (score + float(log_probs[row, slot, rank]), (*path, int(tokens[row, slot, rank])))
                    for score, path in paths
                    for rank in range(5)
                ]
                every += paths
            best = {path for _, path in sorted(every, reverse=True)[:budget]}
            found: list[tuple[int, ...]] = []
            for token, parent in zip(draft.tokens[row].tolist(), draft.parents[row].tolist(), strict=True):
                found.append((*(found[parent] if parent >= 0 else ()), token))
            assert set(found) == best


def test_the_best_tree_of_certain_slots_is_a_chain() -> None:
    log_probs = torch.tensor([0.0, -50.0, -60.0]).expand(1, 4, 3)
    draft = best_first(torch.arange(12).view(1, 4, 3), log_probs, 4)
    assert draft.tokens.tolist() == [[0, 3, 6, 9]]
    assert draft.parents.tolist() == [[-1, 0, 1, 2]]
