"""Algorithm 1 of CAST: theorem 4.1, monotonicity, and cost curves that steps and inversions bend."""

from __future__ import annotations

import numpy as np
import pytest

from methods.shared.cost_aware.marginal import DepthGate, Floats, bucket, num_worthwhile, strictly_rising


def confidences(seed: int, count: int = 40) -> Floats:
    return np.sort(np.random.default_rng(seed).random(count))[::-1]


def test_with_an_affine_cost_the_stated_threshold_keeps_exactly_the_best_k() -> None:
    for seed in range(1000):
        random = np.random.default_rng(seed)
        rows = np.stack([confidences(1000 * seed + row) for row in range(1 + seed % 4)])
        slope, offset = random.uniform(0.01, 2, 2)
        wanted = int(random.integers(1, rows.shape[1]))
        mean = rows.mean(0)
        cost = slope * np.arange(1, len(mean) + 1) + offset
        kept = num_worthwhile(np.cumsum(mean), cost, mean[wanted - 1] / slope, inclusive=True)
        assert kept == wanted


def test_a_flat_cost_keeps_everything_and_a_steep_one_a_single_item() -> None:
    utility = np.cumsum(confidences(0))
    assert num_worthwhile(utility, strictly_rising(np.ones(40)), 1.0) == 40
    assert num_worthwhile(utility, 1000 * np.arange(1, 41), 1.0) == 1


@pytest.mark.parametrize("seed", range(20))
def test_dearer_items_are_never_kept_more_often(seed: int) -> None:
    random = np.random.default_rng(seed)
    utility = np.cumsum(confidences(seed))
    steps = random.uniform(0.01, 0.5, 40)
    kept = [num_worthwhile(utility, 1 + np.cumsum(steps) * factor, 1.0) for factor in (0.5, 1, 2, 4, 8)]
    assert kept == sorted(kept, reverse=True)


def test_a_step_of_the_cost_curve_is_jumped_over_if_what_lies_behind_pays_for_it() -> None:
    # Eight more items for the price of one: the ninth item alone does not pay, all of the tile together do.
    cost = strictly_rising([1.0] * 8 + [2.5] * 8)
    assert num_worthwhile(np.cumsum([0.5] * 16), cost, 2.0) == 16
    assert num_worthwhile(np.cumsum([0.5] * 8 + [0.1] * 8), cost, 2.0) == 8


def test_an_inverted_cost_curve_rises_strictly_and_decides_like_a_flat_one() -> None:
    inverted = strictly_rising([1.0, 1.4, 1.2, 1.3, 2.0])
    assert (np.diff(inverted) > 0).all()
    assert inverted[:4] == pytest.approx([1.0, 1.4, 1.4, 1.4])
    assert num_worthwhile(np.cumsum([0.9, 0.5, 0.2, 0.1, 0.05]), inverted, 1.0) == 4


@pytest.mark.parametrize(
    ("context", "expected"), [(0, 64), (63, 64), (64, 128), (127.5, 128), (448, 512), (512, 512), (9999, 512)]
)
def test_a_context_falls_into_the_next_larger_bucket_and_the_last_one_has_no_end(
    context: float, expected: int
) -> None:
    assert bucket(context, 64, 8) == expected


def test_the_depth_gate_averages_only_its_last_ratios() -> None:
    gate = DepthGate(2)
    assert gate.gain(0.5, 0.25) == pytest.approx(2.0)
    for ratio in (0.9, 0.4, 0.6):
        gate.observe(ratio)
    assert gate.mean == pytest.approx(0.5)
