"""Hybrid: the second drafter drafts where the first has nothing, and misses no round."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_module

from harness.config import ConfigError, build
from harness.decoding.acceptance import Coupled
from harness.decoding.sampling import DecodingParams
from harness.drafting.draft import Draft
from harness.drafting.draft_policy import DraftPolicy
from harness.drafting.drafter import Outcome
from methods.hybrid import Hybrid
from methods.hybrid.drafter import merged
from methods.ngram import NGram
from methods.sam import SAM
from methods.shared.cost_aware.tree import CostAwareTree
from methods.shared.eagle.waiting import Pairs
from methods.token_recycling import TokenRecycling
from methods.vanilla import Vanilla
from tests.support.targets import RandomTrees, engine, requests


def bound(num_rows: int, **parts: Any) -> Hybrid:
    drafter = Hybrid(**parts)
    drafter.bind(engine().target)
    drafter.new_call(keep_memory=False)
    drafter.reset(num_rows)
    return drafter


def test_the_first_drafter_is_asked_first_and_rows_are_routed_one_by_one() -> None:
    drafter = bound(2, first=NGram(min_ngram=2, draft_length=2), second=NGram(max_ngram=1, draft_length=3))
    # The first row repeats two tokens, the second only one.
    drafter.observe(Outcome(committed=[[1, 2, 9, 1], [5, 7, 8, 9, 6]], pending=[2, 5]))
    draft = drafter.propose([9, 9])
    assert draft.size.tolist() == [2, 3]
    assert [draft.tokens[0, :2].tolist(), draft.tokens[1].tolist()] == [[9, 1], [7, 8, 9]]
    assert draft.is_chain
    drafter.keep([1])
    assert drafter.propose([9]).tokens.tolist() == [[7, 8, 9]]


def test_a_merged_draft_states_certain_tokens_beside_drawn_ones() -> None:
    chosen = Draft.chain(torch.tensor([[4, 5], [0, 0]]), torch.tensor([2, 0]))
    drawn = Draft(
        tokens=torch.tensor([[1], [2]]),
        parents=torch.tensor([[-1], [-1]]),
        size=torch.tensor([1, 1]),
        probs=torch.full((2, 1, 6), 1 / 6),
    )
    both = merged(chosen, drawn, torch.tensor([False, True]), 6)
    both.check(6)
    assert both.probs is not None
    assert both.probs[0].argmax(-1).tolist() == [4, 5]
    torch.testing.assert_close(both.probs[1, 0], torch.full((6,), 1 / 6))
    assert both.size.tolist() == [2, 1]
    assert not both.is_chain


def test_every_part_sees_its_own_taps_and_every_round() -> None:
    loop = engine()
    drafter = Hybrid(first=RandomTrees(width=3), second=RandomTrees(width=5))
    drafter.bind(loop.target)
    # RandomTrees asserts that its two taps agree, and that a round commits what it is shown.
    made = loop.generate(requests(), drafter, DecodingParams(name="greedy", max_new_tokens=20), Coupled())
    assert any(max(one.drafted) > 3 for one in made)


def test_scopes_are_the_narrowest_of_those_that_remember() -> None:
    assert Hybrid(first=SAM(), second=TokenRecycling()).scope == "question"
    assert Hybrid(first=NGram(), second=TokenRecycling(memory="process")).scope == "process"
    assert Hybrid(first=NGram(), second=Vanilla()).scope == "call"


class Watched(Vanilla):
    """A second drafter that counts how often it is asked."""

    num_asked = 0

    def propose(self, room: Sequence[int]) -> Draft:
        self.num_asked += 1
        return super().propose(room)


def test_the_second_drafter_is_asked_only_where_there_is_room() -> None:
    second = Watched()
    drafter = bound(2, first=NGram(min_ngram=2, draft_length=2), second=second)
    # The first row repeats two tokens, the second none.
    drafter.observe(Outcome(committed=[[1, 2, 9, 1], [5, 7]], pending=[2, 6]))
    assert drafter.propose([9, 0]).size.tolist() == [2, 0]
    assert drafter.propose([0, 0]).width == 0
    assert second.num_asked == 0
    assert drafter.propose([9, 1]).size.tolist() == [2, 0]
    assert second.num_asked == 1


def test_a_part_remembers_as_long_as_it_is_told() -> None:
    forgets = TokenRecycling(remember="call")
    assert Hybrid(first=NGram(), second=forgets).scope == "call"
    assert Hybrid(first=SAM(memory="process"), second=forgets).scope == "process"
    told: list[bool] = []
    forgets.new_call = told.append  # type: ignore[method-assign,assignment]
    Hybrid(first=SAM(), second=forgets).new_call(keep_memory=True)
    assert told == [False]


def test_a_router_whose_second_drafter_grows_trees_by_cost_emits_the_same() -> None:
    router = composed("method@methods.hybrid.second=cast")
    assert isinstance(router.second.tree, CostAwareTree)
    settings = {"head": "random", "tree": CostAwareTree(max_nodes=8, max_depth=2, top_k=3, max_width=3)}
    loop, params = engine(), DecodingParams(name="greedy", max_new_tokens=20)
    drafter = Hybrid(first=SAM(min_match=5, length="fixed"), second=replace(router.second, **settings))
    drafter.bind(loop.target)
    assert drafter.weighs_costs
    drafter.use_costs(Flat(), 3)
    made = loop.generate(requests(), drafter, params, Coupled())
    plain = loop.generate(requests(), bound(3, first=NGram(), second=Vanilla()), params, Coupled())
    assert [one.output_ids for one in made] == [one.output_ids for one in plain]
    # A chain of the first one has 39 nodes; smaller drafts are the second one's.
    assert {1, 2} & {depth for one in made for depth in one.depth}


class Flat:
    """A forward of any number of tokens costs one second."""

    def curve(self, batch: float, context: float) -> list[float]:
        return [1.0] * 64

    def seconds(self, call: Callable[[int], None], most: int) -> list[float]:
        return [0.1] * most


def composed(*overrides: str) -> Any:
    with initialize_config_module("conf", version_base="1.3"):
        config = compose("bench", overrides=["~experiment", "method=[hybrid]", *overrides])
    return build(config.methods.hybrid, "methods.hybrid")


def test_the_default_is_that_of_the_paper_and_any_part_is_a_choice() -> None:
    usual = composed()
    assert (usual.first.min_match, usual.first.length) == (5, "fixed")
    assert (usual.second.architecture, usual.second.waiting_pairs) == ("eagle3", 40)
    assert isinstance(composed("method@methods.hybrid.second=token_recycling").second, TokenRecycling)
    assert composed("~method@methods.hybrid.second").second is None


class Half(DraftPolicy):
    def select(self, shape: Any) -> None:
        return None


@pytest.mark.parametrize(
    ("parts", "told"),
    [
        ({"first": NGram()}, r"second: a router needs two drafters; .*methods\.hybrid\.second=NAME"),
        ({"second": NGram()}, "first: a router needs two drafters"),
        ({"first": NGram(), "second": NGram(policy=Half())}, r"second\.policy: .* methods\.hybrid\.policy"),
        ({"first": NGram(), "second": TokenRecycling(top_k=99)}, r"second\.top_k=99"),
    ],
)
def test_parts_that_do_not_fit_are_refused(parts: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        Hybrid(**parts).bind(engine().target)


def pairs(*counts: int) -> Pairs:
    most = max(counts)
    tokens = torch.arange(most).expand(len(counts), -1)
    return Pairs(tokens[..., None].float(), tokens, list(counts))


def test_waiting_pairs_follow_one_another_row_by_row() -> None:
    both = pairs(2, 1).followed_by(pairs(1, 3))
    assert both.counts == [3, 4]
    assert both.tokens[0, :3].tolist() == [0, 1, 0]
    assert both.tokens[1].tolist() == both.features[1, :, 0].tolist() == [0, 0, 1, 2]


def test_of_many_waiting_pairs_the_latest_stay_unless_they_begin_with_the_prompt() -> None:
    cut = pairs(9, 9, 8).latest(4, [False, True, False])
    assert cut.counts == [4, 9, 8]
    assert cut.tokens[0, :4].tolist() == [5, 6, 7, 8]
    same = pairs(8, 3)
    assert same.latest(4, [False, False]) is same
