"""The judgement of blocks: each threshold from both sides, and what is no disturbance."""

from __future__ import annotations

from typing import Any

import pytest

from harness.system.load.counters import Usage
from harness.system.load.disturbance import Machine, other_causes

TWO_CORES = Machine(num_cores=2, spare_cores=0, always_computes=True)


def window(wall_s: float = 10.0, **changes: Any) -> Usage:
    given: dict[str, Any] = {
        "wall_s": wall_s,
        "slept_s": 0.0,
        "own_s": 2 * wall_s,
        "others_s": 0.0,
        "stolen_s": 0.0,
        "throttled_s": 0.0,
        "missing_s": 0.0,
        "num_stops": 0,
    }
    return Usage(**{**given, **changes})


@pytest.mark.parametrize(
    ("windows", "expected"),
    [
        ([window()], {}),
        ([window(others_s=0.9)], {}),
        ([window(others_s=5.0)], {"others": 0.25}),
        # A short burst is told from steady work: the mean hides it, the worst window shows it.
        ([window(100), window(1, others_s=0.4)], {}),
        ([window(100), window(1, others_s=1.2)], {"others": 0.6}),
        ([window(stolen_s=4.0)], {"steal": 0.2}),
        ([window(stolen_s=None, throttled_s=None)], {}),
        ([window(throttled_s=0.4)], {}),
        ([window(throttled_s=2.0)], {"quota": 0.2}),
        # Two ticks of a block of 50 ms.
        ([window(0.05, others_s=0.02)], {}),
    ],
)
def test_causes_are_shares_of_what_was_taken(windows: list[Usage], expected: dict[str, float]) -> None:
    assert TWO_CORES.taken(windows) == pytest.approx(expected)


def test_cores_that_the_run_leaves_free_may_be_used_by_others() -> None:
    one_of_four = Machine(num_cores=4, spare_cores=3, always_computes=True)
    assert one_of_four.taken([window(others_s=29.0)]) == {}
    assert one_of_four.taken([window(others_s=35.0)]) == pytest.approx({"others": 35 / 40})
    assert one_of_four.taken([window(stolen_s=4.0)]) == pytest.approx({"steal": 0.1})


def test_housekeeping_of_many_cores_is_no_disturbance() -> None:
    many = Machine(num_cores=64, spare_cores=0, always_computes=True)
    assert many.taken([window(others_s=6.0)]) == {}
    assert many.taken([window(others_s=10.0)]) == pytest.approx({"others": 10 / 640})


def test_where_a_server_decodes_the_processors_here_say_nothing() -> None:
    elsewhere = Machine(num_cores=2, spare_cores=0, decodes_here=False, always_computes=False)
    assert elsewhere.taken([window(others_s=20.0)]) == {}
    assert elsewhere.stopped([window(num_stops=1)]) == "the process was stopped and continued"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, ""),
        ({"missing_s": 0.9}, ""),
        ({"wall_s": 100.0, "missing_s": 5.0}, ""),
        ({"missing_s": 6.0}, "the process did not run for 6.0 s, and nobody else did"),
        ({"missing_s": 6.0, "num_stops": 1}, "the process was stopped for 6.0 s and continued"),
        ({"num_stops": 2}, "the process was stopped and continued"),
        ({"slept_s": 3600.0}, "the machine was suspended for 3600.0 s"),
        ({"slept_s": None}, ""),
    ],
)
def test_a_stop_makes_times_void(changes: dict[str, Any], expected: str) -> None:
    assert TWO_CORES.stopped([window(), window(**changes)]) == expected


def test_a_thread_that_waits_for_a_gpu_is_not_taken_for_a_stopped_one() -> None:
    on_gpu = Machine(num_cores=2, spare_cores=1, always_computes=False)
    assert on_gpu.stopped([window(missing_s=6.0)]) == ""
    assert on_gpu.missing_s([window(missing_s=6.0)]) is None


def test_what_is_not_known_disturbs_nothing() -> None:
    assert other_causes({"bandwidth": None, "gpu_others": None, "gpu_slowed": None}) == {}
    assert other_causes({"bandwidth": 0.19, "gpu_others": 0.04, "gpu_slowed": 0.0}) == {}
    found = {"bandwidth": 0.3, "gpu_others": 0.5, "gpu_slowed": 0.1}
    assert other_causes(found) == found
