"""CostAwarePolicy: what it verifies, what it may lose at most, and when it tries again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_module
from typing_extensions import override

from harness.config import ConfigError, build, configurable
from harness.decoding.acceptance import Coupled, Rejection
from harness.decoding.sampling import DecodingParams
from harness.drafting.draft import Draft, TreeShape
from harness.drafting.sequence_drafter import SequenceDrafter
from methods.eagle import Eagle
from methods.ngram import NGram
from methods.shared.cost_aware.policy import CostAwarePolicy, KeptRates
from methods.shared.cost_aware.tree import CostAwareTree
from methods.vanilla import Vanilla
from tests.support.targets import VOCAB, engine, requests

LONG = DecodingParams(name="greedy", max_new_tokens=200, ignore_end_token=True)


class Costs:
    """A forward of n + 1 tokens takes 1 + 0.1 n seconds, one of the drafter `step` seconds."""

    def __init__(self, token: float = 0.1, step: float = 0.0) -> None:
        self.token, self.step = token, step

    def curve(self, batch: float, context: float) -> list[float]:
        return [1 + self.token * number for number in range(33)]

    def seconds(self, call: Callable[[int], None], most: int) -> list[float]:
        return [self.step] * most


def ready(costs: Costs | None = None, has_model: bool = False, **settings: Any) -> CostAwarePolicy:
    policy = CostAwarePolicy(**settings)
    policy.use_costs(costs or Costs(), 1, lambda rows, context: (lambda count: None) if has_model else None)
    policy.new_call(keep_memory=False)
    return policy


def chain(*sizes: int, confidence: Sequence[Sequence[float]] | None = None) -> TreeShape:
    drafted = Draft.chain(torch.zeros(len(sizes), max(sizes), dtype=torch.int64), torch.tensor(sizes)).shape
    stated = None if confidence is None else torch.tensor(confidence)
    return TreeShape(parents=drafted.parents, size=drafted.size, is_chain=True, confidence=stated)


def kept_of(policy: CostAwarePolicy, shape: TreeShape) -> list[int]:
    """Nodes of each sequence that are verified."""
    keep = policy.select(shape)
    return (shape.real if keep is None else keep & shape.real).sum(-1).tolist()


class Simulation:
    """Rounds with a simulated clock: a chain of `size` tokens, of which the first `good` are right."""

    def __init__(self, policy: CostAwarePolicy, token: float = 0.1, drafting: float = 0.0) -> None:
        self.policy, self.token, self.drafting = policy, token, drafting
        self.seconds = self.emitted = 0.0
        self.verified: list[int] = []

    def play(self, num_rounds: int, size: int, good: Iterator[int] | int) -> None:
        for _ in range(num_rounds):
            right = good if isinstance(good, int) else next(good)
            verified, spent = 0, 0.0
            if self.policy.wants_draft:
                (verified,), spent = kept_of(self.policy, chain(size)), self.drafting
            kept = min(verified, right)
            self.policy.observe([verified], [kept])
            self.seconds += 1 + self.token * verified + spent
            self.emitted += 1 + kept
            self.verified.append(verified)

    @property
    def speedup(self) -> float:
        return self.emitted / self.seconds


def coins(share: float, most: int, seed: int = 0) -> Iterator[int]:
    """How many tokens are right where each is so with probability `share`."""
    random = torch.Generator().manual_seed(seed)
    while True:
        wrong = torch.rand(most, generator=random) >= share
        yield int(wrong.int().argmax()) if bool(wrong.any()) else most


@pytest.mark.parametrize("token", [0.02, 0.1, 0.5, 2.0])
@pytest.mark.parametrize("share", [0.0, 0.05, 0.3, 0.6, 0.9])
def test_a_long_run_loses_at_most_its_share_and_a_draft(token: float, share: float) -> None:
    played = Simulation(ready(Costs(token)), token)
    for seed in range(4):
        played.play(250, 10, coins(share, 10, seed))
        lost = played.seconds - played.emitted
        assert lost <= 0.01 * len(played.verified) + 1 + 10 * token


@pytest.mark.parametrize("token", [0.02, 0.1, 0.5])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_it_is_as_fast_as_the_best_fixed_length_in_hindsight(token: float, share: float) -> None:
    played = Simulation(ready(Costs(token)), token)
    played.play(1500, 10, coins(share, 10))
    brought = [sum(share**depth for depth in range(1, length + 1)) for length in range(11)]
    best = max((1 + brought[length]) / (1 + token * length) for length in range(11))
    assert played.speedup >= 0.93 * best


def test_a_drafter_that_pays_again_is_found_again() -> None:
    played = Simulation(ready())
    played.play(400, 10, 0)
    assert sum(map(bool, played.verified[-100:])) <= 10
    played.play(400, 10, 10)
    assert played.verified[-50:] == [10] * 50


def test_a_model_that_drafts_what_is_never_kept_is_hardly_asked() -> None:
    played = Simulation(ready(Costs(step=0.3), has_model=True), drafting=10 * 0.3)
    played.play(2000, 10, 0)
    assert played.seconds <= 1.01 * 2000 + 1 + 10 * 0.3 + 10 * 0.1
    assert sum(map(bool, played.verified)) < 20


def test_stated_confidence_is_weighed_as_it_is_and_one_length_serves_the_batch() -> None:
    shape = chain(3, 2, confidence=[[0.9, 0.8, 0.1], [0.9, 0.02, 0.0]])
    assert kept_of(ready(), shape) == [2, 2]
    assert kept_of(ready(Costs(token=0.5)), shape) == [1, 1]
    assert kept_of(ready(Costs(token=1.0)), shape) == [0, 0]


def test_trees_of_stated_confidence_lose_their_least_likely_nodes() -> None:
    shape = TreeShape(
        parents=torch.tensor([[-1, -1, 0, 1]]),
        size=torch.tensor([4]),
        confidence=torch.tensor([[0.6, 0.3, 0.5, 0.01]]),
    )
    keep = ready().select(shape)
    assert keep is not None
    assert keep.tolist() == [[True, True, True, False]]


def test_trees_without_confidence_are_refused() -> None:
    shape = TreeShape(parents=torch.tensor([[-1, -1]]), size=torch.tensor([2]))
    with pytest.raises(ConfigError, match=r"states none for its trees; type methods\.NAME\.policy=keep_all"):
        ready().select(shape)


def test_rates_are_learned_by_depth_and_fade_to_what_is_expected() -> None:
    rates = KeptRates(memory=0.9)
    assert rates.likely(3) == pytest.approx([0.7, 0.7**2, 0.7**3])
    for _ in range(200):
        rates.observe([3, 0], [1, 0])
    first, second, third = rates.likely(3)
    assert first > 0.9
    assert second < 0.2 * first
    assert third < 0.2 * second, "a depth that was never reached does as the one above it"
    for _ in range(200):
        rates.observe([0, 0], [0, 0])
    assert rates.likely(3) == pytest.approx([0.7, 0.7**2, 0.7**3])


@configurable
class Wrong(SequenceDrafter):
    """Drafts ten tokens that the target never chooses, and counts how often it was asked."""

    expected: Any = None

    @override
    def propose_one(self, context: Sequence[int], state: Any, room: int) -> Sequence[int]:
        self.num_asked = getattr(self, "num_asked", 0) + 1
        place = len(context) - self.expected[0]
        following = self.expected[1][place : place + 1]
        return [(following[0] + 1) % VOCAB if following else 4] * min(room, 10)


def expected(params: DecodingParams) -> list[list[int]]:
    loop, plain = engine(), Vanilla()
    plain.bind(loop.target)
    return [loop.generate([one], plain, params, Coupled())[0].output_ids for one in requests()]


def test_in_the_loop_drafts_that_are_never_kept_cost_the_share_and_one_draft() -> None:
    (asked, *_), (output, *_) = requests(), expected(LONG)
    drafter = Wrong(expected=(len(asked.prompt), output), policy=CostAwarePolicy())
    loop = engine()
    drafter.bind(loop.target)
    drafter.use_costs(Costs(), 1)
    for _ in range(2):
        drafter.num_asked = 0
        (made,) = loop.generate([asked], drafter, LONG, Coupled())
        assert made.output_ids == output
        spent = sum(1 + 0.1 * size for size in made.drafted)
        assert spent <= 1.01 * len(output) + 1 + 10 * 0.1
        assert 0 < drafter.num_asked < len(output) / 4, "calls do not depend on the calls before"


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("acceptor", [Coupled(), Rejection()], ids=["coupled", "rejection"])
def test_output_is_vanillas_under_the_policy(temperature: float, acceptor: Any) -> None:
    params = DecodingParams(name="any", temperature=temperature, max_new_tokens=60)
    loop = engine(batch_size=2)
    drafter = NGram(policy=CostAwarePolicy())
    drafter.bind(loop.target)
    drafter.use_costs(Costs(), 2)
    made = [one.output_ids for one in loop.generate(requests(), drafter, params, acceptor)]
    if temperature == 0 or acceptor.coupled:
        assert made == expected(params)
    assert drafter.policy.shortens


def composed(*overrides: str) -> Any:
    with initialize_config_module("conf", version_base="1.3"):
        return compose("bench", overrides=["~experiment", *overrides]).methods


def test_a_policy_and_a_tree_are_chosen_by_name() -> None:
    methods = composed(
        "method=[ngram,eagle2]", "methods.ngram.policy=cost_aware", "methods.eagle2.tree=cost_aware"
    )
    ngram, eagle2 = build(methods.ngram, "methods.ngram"), build(methods.eagle2, "methods.eagle2")
    assert isinstance(ngram, NGram)
    assert isinstance(ngram.policy, CostAwarePolicy)
    assert ngram.weighs_costs
    assert isinstance(eagle2, Eagle)
    assert isinstance(eagle2.tree, CostAwareTree)
    assert not build(composed().ngram, "methods.ngram").weighs_costs


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        (
            "methods.ngram.policy=cost_awre",
            r"methods\.ngram\.policy=cost_awre: .* cost_aware\? Allowed: cost",
        ),
        ("methods.ngram.policy=4", "policy"),
    ],
)
def test_a_name_that_there_is_not_is_refused(typed: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        build(composed("method=[ngram]", typed).ngram, "methods.ngram")
