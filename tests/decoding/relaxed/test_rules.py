"""Relaxed acceptors: strict at their neutral settings, monotone, and each keeps what its rule says."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from harness.decoding.acceptance import Acceptor, Coupled
from harness.decoding.relaxed.cascade import Cascade
from harness.decoding.relaxed.lantern import Lantern
from harness.decoding.relaxed.rule import Relaxed, within_budget
from harness.decoding.relaxed.thresholds import AcceptAll, TopK, Typical
from harness.decoding.sampling import DecodingParams, TokenSampler
from harness.drafting.draft import Draft
from harness.drafting.trees import DynamicTree
from methods.eagle import Eagle
from methods.ngram import NGram
from tests.support.targets import RandomTrees, engine, oracle, requests

SIZE, NODES, ROWS, WIDTH = 6, 9, 3, 5
STRICT: list[Relaxed] = [
    TopK(k=1),
    Typical(epsilon=1.0, alpha=float("inf")),
    Lantern(delta=0.0),
    Lantern(ratio=1.0),
    Cascade(tau_breadth=2.0, tau_depth=2.0),
    Cascade(tau_breadth=2.0, tau_depth=2.0, depth="flat"),
    Cascade(tau_breadth=-1, delta=0.0, flat_delta=0.0),
]
LADDERS: dict[str, list[Relaxed]] = {
    "top_k": [TopK(k=k) for k in (1, 2, 4, SIZE)],
    "typical, epsilon": [Typical(epsilon=epsilon, alpha=5.0) for epsilon in (1.0, 0.3, 0.1, 0.01)],
    "typical, alpha": [Typical(epsilon=0.5, alpha=alpha) for alpha in (3.0, 0.5, 0.1, 0.01)],
    "lantern, delta": [Lantern(delta=delta) for delta in (0.0, 0.1, 0.4, 1.0)],
    "lantern, ratio": [Lantern(ratio=ratio) for ratio in (1.0, 2.0, 5.0, 1000.0)],
    "cascade, breadth": [Cascade(tau_breadth=tau, delta=1.0, depth="none") for tau in (2.0, 0.5, 0.0, -1)],
    "cascade, depth": [Cascade(tau_breadth=2, tau_depth=tau, delta=1.0) for tau in (2.0, 0.5, 0.0, -1)],
    "cascade, delta": [Cascade(tau_breadth=0.0, delta=delta) for delta in (0.0, 0.1, 0.4, 1.0)],
    "cascade, flat": [
        Cascade(tau_breadth=0.0, tau_depth=0.0, delta=0.1, depth="flat", flat_delta=delta)
        for delta in (0.1, 0.4, 1.0)
    ],
}
TEMPERATURES = [0.0, 0.7, 1.0]


class View:
    """The part of a target that acceptors ask for."""

    device, vocab_size = torch.device("cpu"), SIZE

    def embed(self, ids: Tensor) -> Tensor:
        vectors = torch.randn(SIZE, WIDTH, generator=torch.Generator().manual_seed(1))
        return vectors[ids]


def round_of(seed: int, temperature: float) -> tuple[Any, ...]:
    """Random logits, a random tree whose siblings differ, a sampler, starts, states."""
    random = torch.Generator().manual_seed(seed)
    tokens = torch.zeros(ROWS, NODES, dtype=torch.int64)
    parents = torch.full_like(tokens, -1)
    for row in range(ROWS):
        taken: set[tuple[int, int]] = set()
        for node in range(NODES):
            while True:
                parent = int(torch.randint(-1, node, (1,), generator=random)) if node else -1
                token = int(torch.randint(SIZE, (1,), generator=random))
                if (parent, token) not in taken:
                    break
            taken.add((parent, token))
            tokens[row, node], parents[row, node] = token, parent
    size = torch.randint(NODES + 1, (ROWS,), generator=random)
    logits = 2 * torch.randn(ROWS, 1 + NODES, SIZE, generator=random)
    params = DecodingParams(name="any", temperature=temperature, top_k=SIZE - 2)
    sampler = TokenSampler(params, [seed + 1, seed + 2, seed + 3], SIZE, torch.device("cpu"))
    states = torch.randn(ROWS, 1 + NODES, WIDTH, generator=random)
    return (
        logits,
        Draft(tokens=tokens, parents=parents, size=size),
        sampler,
        torch.tensor([5, 6, 7]),
    ), states


def decided(acceptor: Acceptor, seed: int, temperature: float) -> list[tuple[list[int], int]]:
    given_, states = round_of(seed, temperature)
    acceptor.bind(View())  # type: ignore[arg-type]
    if acceptor.taps:
        acceptor.see([states])
    made = acceptor.accept(*given_)
    draft = given_[1]
    return [
        (draft.tokens[row, made.path[row, : made.length[row]]].tolist(), int(made.token[row]))
        for row in range(ROWS)
    ]


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("acceptor", STRICT, ids=lambda one: one.name)
@settings(max_examples=25)
@given(seed=st.integers(0, 10_000))
def test_the_neutral_setting_is_strict_token_for_token(
    acceptor: Relaxed, temperature: float, seed: int
) -> None:
    assert decided(acceptor, seed, temperature) == decided(Coupled(), seed, temperature)


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("ladder", LADDERS)
def test_a_looser_threshold_never_keeps_less(ladder: str, temperature: float) -> None:
    sums = [0] * len(LADDERS[ladder])
    for seed in range(60):
        lengths = [
            [len(path) for path, _ in decided(acceptor, seed, temperature)] for acceptor in LADDERS[ladder]
        ]
        for tighter, looser in pairwise(lengths):
            assert all(less <= more for less, more in zip(tighter, looser, strict=True))
        sums = [total + sum(one) for total, one in zip(sums, lengths, strict=True)]
    assert sums[0] < sums[-1], "the ladder relaxes something"


@settings(max_examples=40)
@given(seed=st.integers(0, 10_000), temperature=st.sampled_from(TEMPERATURES))
def test_what_is_kept_is_a_path_and_the_token_after_it_is_drawn_there(seed: int, temperature: float) -> None:
    for acceptor in (TopK(k=3), Lantern(delta=0.5), Cascade(tau_breadth=0.0, delta=1.0), AcceptAll()):
        given_, states = round_of(seed, temperature)
        logits, draft, sampler, start = given_
        acceptor.bind(View())  # type: ignore[arg-type]
        acceptor.see([states])
        made = acceptor.accept(*given_)
        for row in range(ROWS):
            path = made.path[row, : made.length[row]].tolist()
            assert all(node < draft.size[row] for node in path)
            assert draft.parents[row, path].tolist() == [-1, *path][: len(path)]
            last = path[-1] + 1 if path else 0
            position = (start + len(path))[:, None]
            assert sampler.choose(logits[:, last : last + 1], position)[row, 0] == made.token[row]


def test_top_k_at_temperature_zero_is_the_rank_of_the_logit() -> None:
    logits = torch.tensor([[[3.0, 2.0, 1.0, 0.0], [3.0, 2.0, 1.0, 0.0]]])
    sampler = TokenSampler(DecodingParams(name="greedy"), [1], 4, torch.device("cpu"))
    for token in range(4):
        draft = Draft.chain(torch.tensor([[token]]), torch.tensor([1]))
        for k in (1, 2, 3, 4):
            made = TopK(k=k).accept(logits, draft, sampler, torch.tensor([1]))
            assert bool(made.length[0]) == (token < k)


def test_a_filtered_token_never_stays() -> None:
    logits = torch.tensor([[[3.0, 2.0, 1.0, 0.0], [0.0] * 4]])
    params = DecodingParams(name="filtered", temperature=1.0, top_k=2)
    sampler = TokenSampler(params, [1], 4, torch.device("cpu"))
    draft = Draft.chain(torch.tensor([[3]]), torch.tensor([1]))
    assert not TopK(k=4).accept(logits, draft, sampler, torch.tensor([1])).length.any()


def test_typical_acceptance_compares_with_the_entropy() -> None:
    probs = torch.tensor([0.5, 0.3, 0.15, 0.05])
    entropy = float(-(probs * probs.log()).sum())
    logits = probs.log().expand(1, 2, 4)
    sampler = TokenSampler(DecodingParams(name="greedy"), [1], 4, torch.device("cpu"))
    for token in range(1, 4):
        draft = Draft.chain(torch.tensor([[token]]), torch.tensor([1]))
        for alpha in (0.1, 0.5, 0.9):
            made = Typical(epsilon=0.2, alpha=alpha).accept(logits, draft, sampler, torch.tensor([1]))
            least = min(0.2, alpha * torch.tensor(-entropy).exp().item())
            assert bool(made.length[0]) == (probs[token].item() > least)


def test_the_probability_that_lantern_keeps_a_token_is_that_of_its_neighbours_within_the_budget() -> None:
    num_draws, token, delta = 20_000, 2, 0.35
    logits = torch.randn(SIZE, generator=torch.Generator().manual_seed(8))
    acceptor = Lantern(delta=delta, num_neighbours=4)
    acceptor.bind(View())  # type: ignore[arg-type]
    vectors = View().embed(torch.arange(SIZE))
    near = (vectors - vectors[token]).norm(dim=-1).argsort()[1:5]
    probs = logits.double().softmax(-1)
    inside = within_budget(probs[near], delta)
    assert 0 < int(inside.sum()) < 4
    expected = float(probs[token] + (probs[near] * inside).sum())
    params = DecodingParams(name="sampled", temperature=1.0)
    sampler = TokenSampler(params, list(range(num_draws)), SIZE, torch.device("cpu"))
    draft = Draft.chain(torch.full((num_draws, 1), token), torch.ones(num_draws, dtype=torch.int64))
    made = acceptor.accept(
        logits.expand(num_draws, 2, SIZE), draft, sampler, torch.ones(num_draws, dtype=torch.int64)
    )
    error = (expected * (1 - expected) / num_draws) ** 0.5
    assert abs(float(made.length.double().mean()) - expected) < 4 * error


def test_cascade_takes_the_deeper_of_two_interchangeable_siblings() -> None:
    """The target wants the second child; the first one leads to the same state and has a child of its own."""
    logits = torch.full((1, 4, 4), -5.0)
    logits[0, 0, 1], logits[0, 1, 3] = 5.0, 5.0
    draft = Draft(
        tokens=torch.tensor([[0, 1, 3]]), parents=torch.tensor([[-1, -1, 0]]), size=torch.tensor([3])
    )
    sampler = TokenSampler(DecodingParams(name="greedy"), [1], 4, torch.device("cpu"))
    alike = torch.tensor([[[0.0, 1.0], [1.0, 0.01], [1.0, 0.0], [0.3, 0.7]]])
    apart = torch.tensor([[[0.0, 1.0], [1.0, 0.01], [-1.0, 0.0], [0.3, 0.7]]])
    lengths = []
    for states in (alike, apart):
        acceptor = Cascade(delta=1.0)
        acceptor.see([states])
        made = acceptor.accept(logits, draft, sampler, torch.tensor([1]))
        lengths.append(made.path[0, : made.length[0]].tolist())
    assert lengths == [[0, 2], [1]]


def test_cascade_takes_branches_that_have_converged() -> None:
    logits = torch.full((1, 6, 4), -5.0)
    logits[0, 0, 1], logits[0, 1, 2], logits[0, 3, 3] = 5.0, 5.0, 5.0
    draft = Draft(
        tokens=torch.tensor([[0, 1, 2, 0, 3]]),
        parents=torch.tensor([[-1, -1, 0, 1, 2]]),
        size=torch.tensor([5]),
    )
    sampler = TokenSampler(DecodingParams(name="greedy"), [1], 4, torch.device("cpu"))
    states = torch.tensor([[[0, 0, 1.0], [1, 0, 0], [0, 1, 0], [0.5, 0.5, 1], [0.5, 0.5, 1.01], [0, 1, 1]]])
    kept = {}
    for depth in ("none", "branches"):
        acceptor = Cascade(delta=1.0, depth=depth)  # type: ignore[arg-type]
        acceptor.see([states])
        made = acceptor.accept(logits, draft, sampler, torch.tensor([1]))
        kept[depth] = made.path[0, : made.length[0]].tolist()
    assert kept == {"none": [1, 3], "branches": [0, 2, 4]}


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("acceptor", STRICT, ids=lambda one: one.name)
def test_the_loop_with_a_neutral_setting_writes_what_vanilla_writes(
    acceptor: Relaxed, temperature: float
) -> None:
    loop = engine()
    params = DecodingParams(name="any", temperature=temperature, max_new_tokens=25)
    acceptor.bind(loop.target)
    tree = DynamicTree(total_token=12, depth=2, top_k=4)
    for drafter in (NGram(), Eagle(architecture="eagle3", head="random", tree=tree)):
        drafter.bind(loop.target)
        strict = loop.generate(requests(), drafter, params, Coupled())
        neutral = loop.generate(requests(), drafter, params, acceptor)
        assert [one.output_ids for one in strict] == [one.output_ids for one in neutral]
        assert [one.accepted for one in strict] == [one.accepted for one in neutral]


def test_a_drafter_sees_its_own_taps_where_the_acceptor_has_some_too() -> None:
    loop = engine()
    params = DecodingParams(name="greedy", max_new_tokens=25)
    plain = loop.generate(requests(), bound_ngram(loop), params, Coupled())
    # `RandomTrees` asserts that it receives exactly its two taps.
    drafter = RandomTrees(oracle=oracle(requests(), [one.output_ids for one in plain]))
    drafter.bind(loop.target)
    made = loop.generate(requests(), drafter, params, Cascade(tau_breadth=2.0, tau_depth=2.0))
    assert [one.output_ids for one in made] == [one.output_ids for one in plain]


def bound_ngram(loop: Any) -> NGram:
    drafter = NGram()
    drafter.bind(loop.target)
    return drafter
