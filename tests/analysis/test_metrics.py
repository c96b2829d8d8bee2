"""Metrics: hand-computed ledgers, and what holds for every ledger."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.analysis import metrics, tie_rates
from harness.store.records import GenerationRecord, NullReplay, Verdict
from tests.support.builders import ROUND_NS, make_record, make_rung

# Two turns of one conversation and one of another. Rounds (drafted, accepted): the last one of `A` had two
# accepted tokens and its bonus token, of which the cap left one.
A = make_record(conversation="a", drafted=(3, 0, 2), accepted=(1, 0, 2), emitted=(2, 1, 1))
B = make_record(conversation="a", turn=1, drafted=(4, 4), accepted=(4, 0))
C = make_record(conversation="b", drafted=(2,), accepted=(1,))
ALL = [A, B, C]


def test_a_ledger_has_the_values_computed_by_hand() -> None:
    found = metrics.ledger(ALL)
    assert found.num_rounds == 6
    assert found.num_drafted == 15
    assert found.num_verified == 21
    assert found.num_wasted == 15 - 8
    assert found.tau == pytest.approx((2 + 1 + 1 + 5 + 1 + 2) / 6)
    assert found.untrimmed_tau == pytest.approx((8 + 6) / 6)
    assert found.macro_tau == pytest.approx((10 / 5 + 2 / 1) / 2)
    assert found.as_vllm == pytest.approx(1 + (1 + 2 + 4 + 0 + 1) / 5)
    assert found.coverage == pytest.approx(5 / 6)
    assert found.histogram == (2, 2, 1, 0, 1)


def test_as_eagle_divides_untrimmed_tokens_by_the_last_zero_based_cycle_of_each_turn() -> None:
    # A: 6 tokens untrimmed, last cycle 2. B: 6 tokens, last cycle 1. C ends in cycle 0 and is left out.
    assert metrics.as_eagle(ALL) == pytest.approx((6 / 2 + 6 / 1) / 2)


def test_as_spec_bench_counts_the_prefill_as_a_step_of_one_token() -> None:
    assert metrics.as_spec_bench(ALL) == pytest.approx((5 + 7 + 3) / (6 + 3))


def test_acceptance_by_position_divides_by_those_that_got_there() -> None:
    joint, conditional = metrics.acceptance_by_position(ALL)
    assert joint == pytest.approx((4 / 5, 2 / 5, 1 / 5, 1 / 5))
    # Position 2: all four rounds that kept the first token had a second one, and two kept it.
    assert conditional == pytest.approx((4 / 5, 2 / 4, 1 / 1, 1 / 1))


def test_n_alpha_is_told_of_chains_only() -> None:
    chains = [record for record in ALL if record.drafted == record.depth]
    assert metrics.n_alpha(chains) == metrics.acceptance_by_position(chains)[1]
    tree = replace(chains[0], drafted=[count + 1 for count in chains[0].drafted])
    assert metrics.n_alpha([*chains, tree]) == ()


def test_nothing_is_known_of_nothing() -> None:
    found = metrics.ledger([])
    numbers = (found.tau, found.macro_tau, found.as_eagle, found.as_vllm, found.as_spec_bench)
    assert all(map(math.isnan, numbers))
    assert math.isnan(metrics.tokens_per_s([]))
    assert tie_rates.row_verdict([], []) is None


def test_speed_counts_whole_calls_and_decode_speed_leaves_the_prefill_out() -> None:
    # 15 tokens in (4 + 3 + 2) times ROUND_NS, of which 3 are prefill; rounds emitted 12.
    assert metrics.tokens_per_s(ALL) == pytest.approx(15 / (9 * ROUND_NS * 1e-9))
    assert metrics.decode_tokens_per_s(ALL) == pytest.approx(12 / (6 * ROUND_NS * 1e-9))
    split = metrics.time_split(ALL)
    assert split == pytest.approx(
        {"draft": 0.05, "verify": 0.8, "accept": 0.04, "commit": 0.01, "other": 0.1}
    )
    assert metrics.loop_overhead(ALL) == pytest.approx(0.2)


def test_one_untimed_record_takes_the_time_from_all() -> None:
    assert math.isnan(metrics.tokens_per_s([A, make_record(timed=False)]))
    assert metrics.time_split([make_record(timed=False)]) == {}


def test_a_rung_has_a_speed_and_no_rounds() -> None:
    rung = make_rung("transformers.generate", "a", 10, 1_000_000_000)
    assert metrics.tokens_per_s([rung]) == pytest.approx(10)
    assert math.isnan(metrics.tau([rung]))
    assert math.isnan(metrics.decode_tokens_per_s([rung]))


def test_the_roof_reads_weights_once_a_step_and_the_cache_once_a_sequence() -> None:
    assert metrics.roof_tokens_per_s(100.0, 2.0, 50.0, 4, 1000.0) == pytest.approx(
        4 * 1000 / (100 + 4 * 2 * 50)
    )
    # Contexts before output tokens 0..3 of a prompt of 10: 10, 11, 12, 13.
    record = make_rung("x", "a", 4, 1)
    assert metrics.mean_context([record]) == pytest.approx(11.5)


def test_looped_text_is_the_share_of_repeated_eight_grams() -> None:
    looped = make_rung("x", "a", 0, 1, output_ids=[1, 2, 3, 4] * 4)
    fresh = make_rung("x", "b", 16, 1)
    assert metrics.looped_share([looped]) == pytest.approx(5 / 9)
    assert metrics.looped_share([looped, fresh]) == pytest.approx(5 / 18)
    assert metrics.looped_share([make_rung("x", "c", 7, 1)]) == 0


def test_ties_are_counted_once_a_place_however_often_it_was_repeated() -> None:
    tie = [make_record(repeat=repeat, verdict=Verdict("tie", 2, 0.0)) for repeat in range(3)]
    other = make_record(conversation="c01")
    found = tie_rates.ties([*tie, other], [NullReplay("c00", 1000, 2)])
    assert (found.num_ties, found.num_compared) == (1, 3 + len(other.output_ids))
    assert found.null_rate == pytest.approx(0.002)


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [
        (["identical", "unpaired"], "identical"),
        (["unpaired"], "unpaired"),
        (["tie", "identical"], "tie"),
        (["tie", "stop-rule"], "stop-rule"),
        (["lossy", "lossy"], "lossy"),
        (["identical", "broken", "tie"], "broken"),
    ],
)
def test_a_row_has_the_worst_verdict_of_its_records(kinds: list, expected: str) -> None:  # type: ignore[type-arg]
    records = [make_record(conversation=str(i), verdict=Verdict(kind, 1)) for i, kind in enumerate(kinds)]
    assert tie_rates.row_verdict(records, []) == expected


def test_more_ties_than_the_null_explains_are_broken() -> None:
    records = [make_record(conversation=str(i), verdict=Verdict("tie", 1, 0.0)) for i in range(20)]
    assert tie_rates.row_verdict(records, [NullReplay("0", 10_000, 0)]) == "broken"
    assert tie_rates.row_verdict(records, [NullReplay("0", 10, 5)]) == "tie"


def test_right_arms_are_seldom_called_broken_however_few_tokens_they_have() -> None:
    rate, num_compared, num_replayed, num_arms = 1e-3, 1_000, 100_000, 2_000
    noise = np.random.default_rng(0)
    null = [NullReplay("0", num_replayed, round(rate * num_replayed))]
    alarms = by_the_letter = 0
    for num_ties, count in Counter(noise.binomial(num_compared, rate, num_arms).tolist()).items():
        places = [make_record(conversation=str(i), verdict=Verdict("tie", 0, 0.0)) for i in range(num_ties)]
        whole = make_rung("x", "whole", num_compared - num_ties, 1)
        found = tie_rates.ties([*places, whole], null)
        assert found.num_compared == num_compared
        alarms += count * found.excessive
        by_the_letter += count * (found.rate > found.null_ci[1])
    assert alarms / num_arms < 0.025
    assert by_the_letter / num_arms > 0.2


@pytest.mark.parametrize(("num_ties", "broken"), [(1, False), (5, False), (6, True), (20, True)])
def test_beside_a_silent_null_a_few_ties_are_chance_and_many_are_not(num_ties: int, broken: bool) -> None:
    records = [make_record(conversation=str(i), verdict=Verdict("tie", 0, 0.0)) for i in range(num_ties)]
    assert tie_rates.ties(records, [NullReplay("0", num_ties, 0)]).excessive is broken


rounds = st.lists(
    st.tuples(st.integers(0, 8), st.integers(0, 8)).map(lambda pair: (max(pair), min(pair))),
    min_size=1,
    max_size=12,
)


@st.composite
def ledgers(draw: st.DrawFn) -> list[GenerationRecord]:
    records = []
    for number, played in enumerate(draw(st.lists(rounds, min_size=1, max_size=5))):
        drafted, accepted = zip(*played, strict=True)
        cut = draw(st.integers(0, accepted[-1]))
        emitted = [*(length + 1 for length in accepted[:-1]), accepted[-1] + 1 - cut]
        records.append(make_record("ngram", f"c{number}", accepted, drafted, emitted=emitted))
    return records


@given(ledgers())
def test_every_ledger_adds_up(records: list[GenerationRecord]) -> None:
    found = metrics.ledger(records)
    assert 1 <= found.tau <= found.untrimmed_tau
    assert found.num_rounds == sum(found.histogram)
    assert sum(i * count for i, count in enumerate(found.histogram)) == found.num_drafted - found.num_wasted
    assert found.tau * found.num_rounds == pytest.approx(sum(len(r.output_ids) - 1 for r in records))
    assert found.num_verified - found.num_drafted == found.num_rounds
    assert 0 <= found.coverage <= 1
    assert math.isnan(found.as_vllm) == (found.coverage == 0)


@given(ledgers())
def test_joint_acceptance_falls_and_sums_to_vllms_length(records: list[GenerationRecord]) -> None:
    found = metrics.ledger(records)
    assert all(later <= earlier for earlier, later in pairwise(found.joint))
    if found.coverage:
        assert 1 + sum(found.joint) == pytest.approx(found.as_vllm)


@given(ledgers())
def test_the_order_of_the_records_changes_nothing(records: list[GenerationRecord]) -> None:
    # Comparing texts, as nan is not equal to itself.
    assert repr(metrics.ledger(records)) == repr(metrics.ledger(records[::-1]))


def test_along_the_output_rounds_count_where_they_begin_and_before_trimming() -> None:
    # Rounds begin at output tokens 1, 5 and 6; the last is trimmed from three tokens to two.
    record = make_record(accepted=[3, 0, 2], drafted=[4, 4, 4], emitted=[4, 1, 2])
    assert metrics.tau_along([record]) == (4, (4.0, 2.0))
    assert metrics.tau_along([]) == (4, ())
    long = make_record("vanilla", accepted=[0] * 511, drafted=[0] * 511)
    assert metrics.tau_along([long]) == (32, (1.0,) * 16)


def test_the_share_of_prefill_is_pooled_over_whole_calls() -> None:
    long = make_record("vanilla", total_ns=9_000, prefill_ns=1_000)
    short = make_record("vanilla", "c01", total_ns=1_000, prefill_ns=500)
    assert metrics.prefill_share([long, short]) == pytest.approx(1_500 / 10_000)
    assert math.isnan(metrics.prefill_share([make_record("vanilla", timed=False)]))
