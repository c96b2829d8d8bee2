"""Forced tokens stand where they should, one per round, whatever the method drafts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from harness.benchmark.lossless_verdict import Judge
from harness.decoding.acceptance import Coupled, Rejection
from harness.decoding.batch import Generation, Request
from harness.decoding.forced_tokens import ForcedTokens
from harness.decoding.sampling import DecodingParams
from harness.drafting.drafter import Drafter
from harness.engines.transformers_generate import EagerLoop, Generate, PromptLookup
from methods.lookahead import Lookahead
from methods.ngram import NGram
from methods.token_recycling import TokenRecycling
from methods.vanilla import Vanilla
from tests.support.targets import RandomTrees, engine, oracle, requests

GREEDY = DecodingParams(name="greedy", max_new_tokens=30, ignore_end_token=True)
SAMPLED = DecodingParams(name="sampled", temperature=1.0, max_new_tokens=30, ignore_end_token=True)
IDS = (50, 51, 52)
FORCED = ForcedTokens(ids=IDS, after=13)


def asked(forced: ForcedTokens = FORCED) -> list[Request]:
    """Three requests, of which the middle one forces nothing."""
    first, second, third = requests()
    return [replace(first, forced=forced), second, replace(third, forced=forced)]


def made(
    drafter: Drafter, given: Sequence[Request], params: DecodingParams = GREEDY, **options: int
) -> list[Generation]:
    loop = engine(**options)
    drafter.bind(loop.target)
    return loop.generate(given, drafter, params, Coupled())


def alone(params: DecodingParams, given: Sequence[Request]) -> list[Generation]:
    return [made(Vanilla(), [one], params)[0] for one in given]


@pytest.mark.parametrize("params", [GREEDY, SAMPLED], ids=lambda params: params.name)
@pytest.mark.parametrize("name", ["trees", "ngram", "lookahead", "token_recycling"])
def test_every_method_emits_what_vanilla_emits_and_one_forced_token_a_round(
    params: DecodingParams, name: str
) -> None:
    given = asked()
    plain = alone(params, given)
    expected = [one.output_ids for one in plain]
    drafter: Drafter = {
        "trees": RandomTrees(oracle=oracle(given, expected)),
        "ngram": NGram(),
        "lookahead": Lookahead(),
        "token_recycling": TokenRecycling(),
    }[name]
    results = made(drafter, given, params)
    assert [one.output_ids for one in results] == expected
    assert sum(sum(one.accepted) for one in results) > 0
    for number, one in enumerate(results):
        rounds = [place for place, forced in enumerate(one.forced) if forced]
        assert one.output_ids[13:16] == list(IDS) if number != 1 else not rounds
        if rounds:
            # The round before ends exactly where the forced tokens begin, and they follow one another.
            assert rounds == list(range(rounds[0], rounds[0] + 3))
            assert 1 + sum(one.emitted[: rounds[0]]) == 13
            assert [one.emitted[place] for place in rounds] == [1, 1, 1]
            assert [one.drafted[place] for place in rounds] == [0, 0, 0]


def test_rows_that_wait_get_their_forced_tokens_too() -> None:
    given = asked()
    expected = [one.output_ids for one in alone(GREEDY, given)]
    trees = RandomTrees(oracle=oracle(given, expected))
    assert [one.output_ids for one in made(trees, given, batch_size=2)] == expected


def test_with_the_quotient_rule_the_tokens_stand_at_the_same_place() -> None:
    loop, drafter = engine(), NGram()
    drafter.bind(loop.target)
    results = loop.generate(asked(), drafter, SAMPLED, Rejection())
    assert [one.output_ids[13:16] == list(IDS) for one in results] == [True, False, True]


def test_a_thought_that_has_closed_is_left_alone_and_not_cut() -> None:
    """Nothing changes, neither the output nor the rounds, where the closing tokens stand before the place."""
    (first, *_) = requests()
    (plain,) = alone(GREEDY, [first])
    closing = tuple(plain.output_ids[8:10])
    forced = ForcedTokens(ids=IDS, after=13, unless=closing)
    trees = [RandomTrees(oracle=oracle([first], [plain.output_ids])) for _ in range(2)]
    (without,) = made(trees[0], [first])
    (with_it,) = made(trees[1], [replace(first, forced=forced)])
    assert with_it.output_ids == without.output_ids == plain.output_ids
    assert with_it.emitted == without.emitted
    late = ForcedTokens(ids=IDS, after=9, unless=closing)
    (cut,) = alone(GREEDY, [replace(first, forced=late)])
    assert cut.output_ids[9:12] == list(IDS), "the second of the two tokens stands behind the place"


def test_places_are_those_that_the_ledger_counts_and_the_null_leaves_out() -> None:
    (first, *_) = asked()
    (one,) = alone(GREEDY, [first])
    assert FORCED.places(one.output_ids) == {13, 14, 15}
    assert FORCED.places(one.output_ids[:14]) == {13}
    null = Judge(engine().target, GREEDY).null("c", first, one.output_ids, 4)
    assert (null.num_tokens, null.num_differing) == (len(one.output_ids) - 3, 0)
    blind = Judge(engine().target, GREEDY).null("c", replace(first, forced=None), one.output_ids, 4)
    assert blind.num_differing > 0


@pytest.mark.parametrize("params", [GREEDY, SAMPLED], ids=lambda params: params.name)
@pytest.mark.parametrize(
    "rung", [Generate(), PromptLookup(), EagerLoop(drafter=Vanilla())], ids=lambda rung: type(rung).__name__
)
def test_the_rungs_of_the_ladder_are_forced_alike(rung: Generate, params: DecodingParams) -> None:
    given = asked()
    loop = engine()
    for request, plain in zip(given, alone(params, given), strict=True):
        assert rung.generate(loop, request, params).output_ids == plain.output_ids
