"""Acceptors on targets small enough to enumerate: chi-square of the output, and the decision by brute force.

With 50,000 draws over five tokens, a shift of 1 % of the mass between two tokens of average weight has
noncentrality 50 at four degrees of freedom: at p = 0.01 it is found in more than 99.9 % of cases.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from harness.decoding.acceptance import Accepted, Acceptor, Coupled, Rejection, sweep, walk
from harness.decoding.sampling import DecodingParams, TokenSampler, stream_key
from harness.drafting.draft import Draft

NUM_DRAWS, VOCAB = 50_000, 5
CRITICAL = {4: 13.277, 20: 37.566}
"""0.99 quantiles of chi-square, by degrees of freedom."""
SAMPLED = DecodingParams(name="sampled", temperature=1.0)
LOGITS = torch.randn(1 + VOCAB, VOCAB, generator=torch.Generator().manual_seed(3))
"""A bigram target: row 0 at first, row 1 + t after token t."""


def expected_probs() -> Tensor:
    return LOGITS.double().softmax(-1)


def drafted(seed: int, drawn: bool) -> Draft:
    """Two siblings and a child of the first; drawn from the drafter's distribution, or always the same."""
    if not drawn:
        tokens = torch.tensor([[1, 3, 2]]).expand(NUM_DRAWS, 3)
        return Draft(
            tokens=tokens,
            parents=torch.tensor([[-1, -1, 0]]).expand(NUM_DRAWS, 3),
            size=torch.full((NUM_DRAWS,), 3),
        )
    random = torch.Generator().manual_seed(seed)
    distribution = torch.tensor([0.4, 0.1, 0.2, 0.25, 0.05]).expand(NUM_DRAWS, VOCAB)
    first = distribution.multinomial(1, generator=random)
    # Siblings are distinct: the second is drawn from what the first left.
    rest = distribution.scatter(1, first, 0.0)
    rest = rest / rest.sum(-1, keepdim=True)
    second, child = rest.multinomial(1, generator=random), distribution.multinomial(1, generator=random)
    return Draft(
        tokens=torch.cat([first, second, child], dim=1),
        parents=torch.tensor([[-1, -1, 0]]).expand(NUM_DRAWS, 3),
        size=torch.full((NUM_DRAWS,), 3),
        probs=torch.stack([distribution, rest, distribution], dim=1),
    )


def outcome(acceptor: Acceptor, seed: int, drawn: bool) -> tuple[Tensor, Tensor, Tensor]:
    """First token of every draw; second tokens of those that accepted one, with the first they follow."""
    draft = drafted(seed, drawn)
    logits = torch.cat([LOGITS[:1].expand(NUM_DRAWS, 1, VOCAB), LOGITS[1 + draft.tokens]], dim=1)
    keys = [stream_key(seed, str(draw), 0, 0) for draw in range(NUM_DRAWS)]
    sampler = TokenSampler(SAMPLED, keys, VOCAB, torch.device("cpu"))
    made = acceptor.accept(logits, draft, sampler, torch.zeros(NUM_DRAWS, dtype=torch.int64))
    path_tokens = draft.tokens.gather(1, made.path)
    one = made.length > 0
    first = torch.where(one, path_tokens[:, 0], made.token)
    second = torch.where(made.length > 1, path_tokens[:, 1], made.token)
    return first, first[one], second[one]


def statistics(acceptor: Acceptor, seed: int, drawn: bool) -> tuple[float, float]:
    """Chi-square of the first tokens (4 degrees of freedom) and of the second given the first (4 each)."""
    first, before, second = outcome(acceptor, seed, drawn)
    return chi_square(first, expected_probs()[0]), sum(
        chi_square(second[before == token], expected_probs()[1 + token]) for token in before.unique().tolist()
    )


def chi_square(tokens: Tensor, distribution: Tensor) -> float:
    expected = distribution * len(tokens)
    seen = torch.bincount(tokens, minlength=VOCAB).double()
    return float(((seen - expected) ** 2 / expected).sum())


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("drawn", [True, False], ids=["drawn", "fixed"])
@pytest.mark.parametrize("acceptor", [Coupled(), Rejection()], ids=lambda acceptor: acceptor.name)
def test_the_output_follows_the_targets_distribution(acceptor: Acceptor, drawn: bool, seed: int) -> None:
    first, second = statistics(acceptor, seed, drawn)
    assert first < CRITICAL[4]
    assert second < CRITICAL[20], "at most five first tokens, four degrees of freedom each"


class Eager(Rejection):
    """Wrong on purpose: a drafted token is kept a little too often."""

    def accept(self, logits: Tensor, draft: Draft, sampler: TokenSampler, start: Tensor) -> Accepted:
        made = super().accept(logits, draft, sampler, start)
        forced = (torch.arange(len(start)) % 50 == 0) & (made.length == 0)
        return Accepted(made.length, made.path, torch.where(forced, draft.tokens[:, 0], made.token))


def test_a_small_bias_is_found() -> None:
    assert statistics(Eager(), 1, False)[0] > CRITICAL[4]


def test_rejection_accepts_more_of_a_drawn_draft_than_coupling() -> None:
    lengths = [len(outcome(acceptor, 1, True)[1]) for acceptor in (Rejection(), Coupled())]
    assert lengths[0] > lengths[1]


@st.composite
def trees(draw: st.DrawFn) -> Draft:
    """Legal trees of three sequences, some of them empty."""
    width = draw(st.integers(0, 7))
    tokens, parents, size = [], [], []
    for _ in range(3):
        count = draw(st.integers(0, width))
        row: list[tuple[int, int]] = []
        for node in range(count):
            free = [
                (parent, token)
                for parent in range(-1, node)
                for token in range(VOCAB)
                if (parent, token) not in row
            ]
            row.append(draw(st.sampled_from(free)))
        row += [(-1, 0)] * (width - count)
        parents.append([parent for parent, _ in row])
        tokens.append([token for _, token in row])
        size.append(count)
    shape = (3, width)
    return Draft(
        tokens=torch.tensor(tokens, dtype=torch.int64).reshape(shape),
        parents=torch.tensor(parents, dtype=torch.int64).reshape(shape),
        size=torch.tensor(size),
    )


@settings(deadline=None)  # what else runs on the machine is no failure
@given(trees(), st.integers(0, 1000), st.booleans())
def test_the_longest_chosen_path_is_accepted(draft: Draft, seed: int, greedy: bool) -> None:
    draft.check(VOCAB)
    params = DecodingParams(name="greedy") if greedy else SAMPLED
    sampler = TokenSampler(params, [seed, seed + 1, seed + 2], VOCAB, torch.device("cpu"))
    logits = torch.randn(3, 1 + draft.width, VOCAB, generator=torch.Generator().manual_seed(seed))
    start = torch.tensor([0, 5, 9])
    for made in (walk(logits, draft, sampler, start), sweep(logits, draft, sampler, start)):
        for row in range(3):
            here, path = -1, []
            while True:
                index = torch.full((3, 1), int(start[row]) + len(path))
                token = int(sampler.choose(logits[:, here + 1 : here + 2], index)[row])
                children = [
                    node
                    for node in range(int(draft.size[row]))
                    if draft.parents[row, node] == here and draft.tokens[row, node] == token
                ]
                if not children:
                    break
                here = children[0]
                path.append(here)
            assert made.length[row] == len(path)
            assert made.path[row, : len(path)].tolist() == path
            assert made.token[row] == token


@given(trees())
def test_ancestors_and_depths_follow_the_parents(draft: Draft) -> None:
    for row in range(3):
        for node in range(int(draft.size[row])):
            line, here = set(), node
            while here != -1:
                line.add(here)
                here = int(draft.parents[row, here])
            assert set(draft.ancestors[row, node].nonzero()[:, 0].tolist()) == line
            assert draft.depths[row, node] == len(line)


def test_streams_of_neighbouring_positions_do_not_meet() -> None:
    """A round may use many numbers; those of the next position must be others."""
    sampler = TokenSampler(SAMPLED, [7], VOCAB, torch.device("cpu"))
    streams = [set(sampler.generator(0, position).random(64).tolist()) for position in range(40)]
    assert len(set.union(*streams)) == 40 * 64
