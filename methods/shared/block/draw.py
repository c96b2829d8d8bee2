"""From the states of a block to its tokens: independent slots, corrected slots, or a walk over candidates.

The states are computed once; what depends on the tokens before a slot is added slot by slot.

Shapes: B sequences, k drafted slots, H hidden size, V the target's vocabulary, D draft vocabulary,
c candidates.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from harness.drafting.drafter import TargetView
from methods.shared.block.networks.network import BlockNetwork


class Drawn(NamedTuple):
    """The tokens of a block."""

    tokens: Tensor
    """[B, k] int64: ids of the target."""
    likelihood: Tensor
    """[B, k] float32: what each token was given by the distribution of its slot."""
    probs: Tensor | None
    """[B, k, V] float32: the distribution that each token was drawn from; None at temperature 0."""
    logits: Tensor
    """[B, k, D], or [B, k, c] of candidates: what the tokens were chosen by."""
    candidates: Tensor | None
    """[B, k, c] int64: ids of the target, where a selector chose among them."""
    confidence: Tensor | None
    """[B, k]: logits of the confidence head, where there is one."""


def draw(
    network: BlockNetwork,
    target: TargetView,
    states: Tensor,
    anchor: Tensor,
    temperature: float,
    noise: Tensor | None,
) -> Drawn:
    """The tokens of the slots with states [B, k, H], behind anchors [B].

    noise: [B, k] uniform numbers in [0, 1), independent of the acceptor's; None at temperature 0.
    """
    base = network.logits(states, target).float()
    if network.candidate_selector is None and network.markov_head is None:
        chosen, likelihood, probs = pick(base, temperature, noise)
        drawn = Drawn(
            tokens=network.target_ids(chosen),
            likelihood=likelihood,
            probs=probs if probs is None else _spread(network, probs, None),
            logits=base,
            candidates=None,
            confidence=None,
        )
    else:
        drawn = _walk(network, base, states, anchor, temperature, noise)
    if network.confidence_head is None:
        return drawn
    before = torch.cat([anchor[:, None], drawn.tokens[:, :-1]], dim=1)
    known = network.markov_head.embedded(before) if network.markov_head else None
    return drawn._replace(confidence=network.confidence_head(states, known).float())


def _walk(
    network: BlockNetwork,
    base: Tensor,
    states: Tensor,
    anchor: Tensor,
    temperature: float,
    noise: Tensor | None,
) -> Drawn:
    """Slot by slot, each by what the token before it says. base: [B, k, D]."""
    selector, markov = network.candidate_selector, network.markov_head
    candidates = None
    if selector is not None:
        best = base.topk(selector.num_candidates, dim=-1)
        base, candidates = best.values, network.target_ids(best.indices)
    memory = markov.start(states[:, 0]) if markov else None
    previous, tokens, likelihoods, all_probs, all_scores = anchor, [], [], [], []
    for slot in range(states.shape[1]):
        scores, state = base[:, slot], states[:, slot]
        if selector is not None and candidates is not None:
            scores = selector(scores, candidates[:, slot], state, previous).float()
        if markov is not None and memory is not None:
            bias, memory = markov(previous, state, memory)
            scores = scores + bias.float()
        chosen, likelihood, probs = pick(scores, temperature, None if noise is None else noise[:, slot])
        if candidates is None:
            previous = network.target_ids(chosen)
        else:
            previous = candidates[:, slot].gather(1, chosen[:, None])[:, 0]
        tokens.append(previous)
        likelihoods.append(likelihood)
        all_scores.append(scores)
        if probs is not None:
            all_probs.append(probs)
    return Drawn(
        tokens=torch.stack(tokens, 1),
        likelihood=torch.stack(likelihoods, 1),
        probs=_spread(network, torch.stack(all_probs, 1), candidates) if all_probs else None,
        logits=torch.stack(all_scores, 1),
        candidates=candidates,
        confidence=None,
    )


def corrected_logits(network: BlockNetwork, target: TargetView, states: Tensor, previous: Tensor) -> Tensor:
    """Logits [B, k, D] of slots with states [B, k, H] whose previous tokens [B, k] are known."""
    logits, markov = network.logits(states, target).float(), network.markov_head
    if markov is None:
        return logits
    memory, biases = markov.start(states[:, 0]), []
    for slot in range(states.shape[1]):
        bias, memory = markov(previous[:, slot], states[:, slot], memory)
        biases.append(bias.float())
    return logits + torch.stack(biases, dim=1)


def corrected(
    network: BlockNetwork, target: TargetView, states: Tensor, previous: Tensor
) -> tuple[Tensor, Tensor | None]:
    """`corrected_logits` [B, k, D], and confidence logits [B, k], where there is such a head.

    This is what training compares with the target.
    """
    logits = corrected_logits(network, target, states, previous)
    if network.confidence_head is None:
        return logits, None
    known = network.markov_head.embedded(previous) if network.markov_head else None
    return logits, network.confidence_head(states, known).float()


def pick(logits: Tensor, temperature: float, noise: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """A place on the last axis of logits [..., c], what it was given, and the distribution behind it.

    At temperature 0 the likeliest place, without a distribution; else the place that noise [...] points at.
    Every place that is drawn has a probability above 0.
    """
    if not temperature:
        best = logits.max(dim=-1)
        return best.indices, (best.values - logits.logsumexp(-1)).exp(), None
    assert noise is not None, "tokens are drawn with noise"
    probs = torch.softmax(logits / temperature, dim=-1)
    cumulative = probs.double().cumsum(-1)
    point = noise.to(cumulative)[..., None] * cumulative[..., -1:]
    place = torch.searchsorted(cumulative, point, right=True)
    order = torch.arange(probs.shape[-1], device=probs.device)
    last = torch.where(probs > 0, order, -1).amax(-1, keepdim=True)
    place = torch.minimum(place, last)
    return place[..., 0], probs.gather(-1, place)[..., 0], probs


def _spread(network: BlockNetwork, probs: Tensor, candidates: Tensor | None) -> Tensor:
    """Probabilities [B, k, D or c] over the target's vocabulary, [B, k, V]."""
    shape = network.shape
    if candidates is None:
        if shape.draft_vocab_size == shape.vocab_size:
            return probs
        ids = network.target_ids(torch.arange(shape.draft_vocab_size, device=probs.device))
        candidates = ids.expand_as(probs)
    wide = probs.new_zeros(*probs.shape[:-1], shape.vocab_size)
    return wide.scatter(-1, candidates, probs)
