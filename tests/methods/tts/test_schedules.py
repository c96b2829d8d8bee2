"""The bandit trains where it pays: simulated answers whose domain switches, with costs and no clock."""

from __future__ import annotations

import random
from collections.abc import Callable
from statistics import fmean, stdev

import pytest

from methods.tts.schedules import Arm, Bandit, BanditSettings, Schedule, Stride

ROUND_S = 1.0
COSTS: dict[Arm, float] = {"skip": 0.0, "head": 0.15, "full": 2.0}
DRAFTED = 6
LEARNED: dict[Arm, float] = {"skip": 0.0, "head": 0.02, "full": 0.3}
"""Share of what is missing that an update makes good."""


def throughput(schedule: Schedule, seed: int, switches: int, num_rounds: int = 2000) -> float:
    """Tokens per second of a drafter whose skill is lost at every switch of the domain."""
    drawn, skill, tokens, seconds = random.Random(seed), 0.9, 0, 0.0
    for number in range(num_rounds):
        if switches and number % (num_rounds // (switches + 1)) == 0:
            skill = 0.2
        accepted = next((i for i in range(DRAFTED) if drawn.random() > skill), DRAFTED)
        arm = schedule.decide(1 + accepted, DRAFTED - accepted, ROUND_S)
        skill += LEARNED[arm] * (0.9 - skill)
        tokens += 1 + accepted
        seconds += ROUND_S + COSTS[arm]
    return tokens / seconds


def mean_and_error(schedule: Callable[[], Schedule], switches: int) -> tuple[float, float]:
    rates = [throughput(schedule(), seed, switches) for seed in range(12)]
    return fmean(rates), 1.96 * stdev(rates) / len(rates) ** 0.5


def bandit() -> Schedule:
    return Bandit(BanditSettings(), COSTS)


@pytest.mark.parametrize("switches", [3, 10])
@pytest.mark.parametrize("stride", [0, 1], ids=["never", "always"])
def test_the_bandit_is_at_least_as_fast_as_never_and_always(switches: int, stride: int) -> None:
    ours, error = mean_and_error(bandit, switches)
    theirs, other = mean_and_error(lambda: Stride(stride), switches)
    assert ours + error >= theirs - other


def test_with_switches_it_is_faster_than_both_beyond_the_intervals() -> None:
    ours, error = mean_and_error(bandit, 3)
    for stride in (0, 1):
        theirs, other = mean_and_error(lambda stride=stride: Stride(stride), 3)  # type: ignore[misc]
        assert ours - error > theirs + other


def test_without_a_switch_it_loses_little_to_never_and_is_much_faster_than_always() -> None:
    """It may spend a hundredth of its time on trying, and noise may look like a gain now and then."""
    ours, _ = mean_and_error(bandit, 0)
    never, _ = mean_and_error(lambda: Stride(0), 0)
    always, _ = mean_and_error(lambda: Stride(1), 0)
    assert ours > 0.96 * never
    assert ours > 2 * always


def test_it_skips_where_an_update_costs_more_than_it_can_bring() -> None:
    arms: dict[Arm, float] = {"skip": 0.0, "full": 1e6}
    schedule = Bandit(BanditSettings(), arms)
    chosen = [schedule.decide(2, 4, ROUND_S) for _ in range(800)]
    assert chosen.count("full") == 0


def test_tries_without_a_promise_take_no_more_than_their_share_of_the_time() -> None:
    """Rounds that are all alike show no gain, so that every update is a try."""
    arms: dict[Arm, float] = {"skip": 0.0, "full": 1.5}
    schedule = Bandit(BanditSettings(exploration=0.02), arms)
    chosen = [schedule.decide(2, 4, ROUND_S) for _ in range(2000)]
    spent = chosen.count("full") * arms["full"]
    assert 0.015 * 2000 < spent < 0.025 * 2000


def test_what_is_dear_is_tried_as_well_as_what_is_cheap() -> None:
    schedule = Bandit(BanditSettings(), {"skip": 0.0, "head": 1.0, "full": 3.0})
    chosen = [schedule.decide(2, 4, ROUND_S) for _ in range(4000)]
    assert chosen.count("head") > 2 * chosen.count("full") > 0


def test_it_skips_where_next_to_nothing_was_rejected() -> None:
    schedule = Bandit(BanditSettings(min_rejected=4), COSTS)
    assert {schedule.decide(DRAFTED + 1, 0, ROUND_S) for _ in range(200)} == {"skip"}


def test_a_drafter_without_a_head_of_its_own_is_updated_as_a_whole() -> None:
    schedule = Bandit(BanditSettings(), {"skip": 0.0, "full": 0.1})
    assert {schedule.decide(1, 4, ROUND_S) for _ in range(400)} == {"skip", "full"}


def test_decisions_come_once_per_window() -> None:
    schedule = Bandit(BanditSettings(window=5), {"skip": 0.0, "full": 0.0})
    chosen = [schedule.decide(1, 4, ROUND_S) for _ in range(50)]
    assert all(arm == "skip" for number, arm in enumerate(chosen, 1) if number % 5)
    assert "full" in chosen


@pytest.mark.parametrize(("stride", "expected"), [(0, 0), (1, 12), (5, 2)])
def test_a_stride_counts_rounds(stride: int, expected: int) -> None:
    schedule = Stride(stride)
    assert [schedule.decide(1, 1, ROUND_S) for _ in range(12)].count("full") == expected
