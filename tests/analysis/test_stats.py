"""Statistics: intervals cover what they promise, pairing helps, exact values are exact."""

from __future__ import annotations

import numpy as np
import pytest

from harness.analysis import stats
from harness.analysis.stats import Interval, Totals


def synthetic(random: np.random.Generator, num_clusters: int) -> tuple[Totals, Totals]:
    """Two arms whose speedup is 1.5, on prompts that differ much in length and in how fast anything goes."""
    tokens = random.integers(20, 200, num_clusters).astype(float)
    pace = random.lognormal(0.0, 0.5, num_clusters)
    noise = random.normal(1.0, 0.1, (2, num_clusters))
    return Totals(tokens, tokens * pace * noise[0] / 1.5), Totals(tokens, tokens * pace * noise[1])


def test_a_95_percent_interval_covers_the_truth_about_that_often() -> None:
    random = np.random.default_rng(7)
    num_trials, hits = 400, 0
    for trial in range(num_trials):
        ours, vanilla = synthetic(random, 40)
        found = stats.bootstrap([ours], [vanilla], num_resamples=400, seed=trial)
        hits += found.low <= 1.5 <= found.high
    assert 0.91 <= hits / num_trials <= 0.98


def test_pairing_takes_out_what_prompts_have_in_common() -> None:
    ours, vanilla = synthetic(np.random.default_rng(1), 40)
    paired = stats.bootstrap([ours], [vanilla])
    order = np.random.default_rng(2).permutation(40)
    unpaired = stats.bootstrap([ours], [Totals(vanilla.amount[order], vanilla.cost[order])])
    assert unpaired.value == pytest.approx(paired.value)
    assert paired.half_width < unpaired.half_width / 3


def test_a_factor_common_to_both_arms_cancels_without_rest() -> None:
    _, vanilla = synthetic(np.random.default_rng(3), 20)
    faster = Totals(vanilla.amount, vanilla.cost / 2)
    assert tuple(stats.bootstrap([faster], [vanilla])) == pytest.approx((2.0, 2.0, 2.0))


def test_two_rates_over_two_are_the_ratio_of_speedups() -> None:
    random = np.random.default_rng(4)
    (a, a_vanilla), (b, b_vanilla) = synthetic(random, 30), synthetic(random, 30)
    found = stats.bootstrap([a, b_vanilla], [b, a_vanilla])
    assert found.value == pytest.approx(
        stats.bootstrap([a], [a_vanilla]).value / stats.bootstrap([b], [b_vanilla]).value
    )


def test_the_same_data_give_the_same_interval() -> None:
    ours, vanilla = synthetic(np.random.default_rng(5), 15)
    assert stats.bootstrap([ours], [vanilla]) == stats.bootstrap([ours], [vanilla])


def test_one_cluster_has_a_value_and_no_interval() -> None:
    one = Totals(np.array([10.0]), np.array([5.0]))
    found = stats.bootstrap([one])
    assert found.value == 2.0
    assert found.ends is None
    assert stats.difference(found, 0.0) == "not distinguishable"


@pytest.mark.parametrize(
    ("interval", "floor", "expected"),
    [
        (Interval(1.5, 1.4, 1.6), 0.02, "faster"),
        (Interval(0.5, 0.4, 0.6), 0.02, "slower"),
        (Interval(1.5, 0.9, 2.1), 0.02, "not distinguishable"),
        (Interval(1.01, 1.005, 1.015), 0.02, "not distinguishable"),
        (Interval(1.01, 1.005, 1.015), float("nan"), "faster"),
    ],
)
def test_a_difference_needs_an_interval_without_one_and_more_than_the_floor(
    interval: Interval, floor: float, expected: str
) -> None:
    assert stats.difference(interval, floor) == expected


@pytest.mark.parametrize(
    ("hits", "trials", "low", "high"),
    [
        (0, 0, 0.0, 1.0),
        (0, 10, 0.0, 1 - 0.025**0.1),
        (10, 10, 0.025**0.1, 1.0),
        (5, 10, 0.187086, 0.812914),
        (1, 20, 0.001265, 0.248733),
        (3, 100_000, 6.187e-6, 8.767e-5),
    ],
)
def test_clopper_pearson_has_the_published_values(hits: int, trials: int, low: float, high: float) -> None:
    assert stats.clopper_pearson(hits, trials) == pytest.approx((low, high), rel=2e-3, abs=1e-9)


def test_the_geometric_mean_of_a_ratio_and_its_inverse_is_one() -> None:
    assert stats.geometric_mean(np.array([4.0, 0.25])) == pytest.approx(1.0)
    assert np.isnan(stats.geometric_mean(np.array([])))
