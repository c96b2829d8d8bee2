"""Percentiles, goodput and rounds of streams, against numbers that are computed here by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from harness.analysis.serving.latencies import Serving, serving
from harness.store.columns import Columns
from harness.store.records import GenerationRecord

MS = 1_000_000


def record(conversation: str, arrived: list[int], arrival_ms: list[int], **more: Any) -> GenerationRecord:
    given: dict[str, Any] = {
        "arm": "a",
        "kind": "roundless",
        "conversation": conversation,
        "category": "c",
        "prompt_hash": "p",
        "num_prompt_tokens": 3,
        "output_ids": list(range(sum(arrived))),
        "stop": "cap",
        "arrived": arrived,
        "arrival_ns": [MS * one for one in arrival_ms],
        "first_token_ns": MS * arrival_ms[0],
        "latency_ns": MS * arrival_ms[-1],
        "total_ns": 50 * MS,
        **more,
    }
    return GenerationRecord(**given)


RECORDS = [
    record("1", [1, 3, 2], [10, 40, 60], engine_rounds=2, engine_drafted=8, engine_accepted=3),
    record("2", [1, 1, 1], [30, 50, 90], engine_rounds=0, engine_drafted=0, engine_accepted=0),
]


def served(**limits: float) -> Serving:
    found = serving(Columns.of(RECORDS), limits)
    assert found is not None
    return found


def test_percentiles_are_those_of_all_requests_and_gaps() -> None:
    found = served()
    assert found.first_token == pytest.approx(np.percentile([0.01, 0.03], [50, 90, 99]))
    assert found.burst_gap == pytest.approx(np.percentile([0.03, 0.02, 0.02, 0.04], [50, 90, 99]))
    assert found.request == pytest.approx(np.percentile([0.06, 0.09], [50, 90, 99]))
    # 50 ms for five tokens behind the first burst, 60 ms for two.
    assert found.per_token == pytest.approx(np.percentile([0.01, 0.03], [50, 90, 99]))
    assert found.user_tokens_per_s == pytest.approx(50)
    assert math.isnan(found.goodput)


def test_both_taus_count_what_they_say() -> None:
    found = served()
    assert found.tau_of_bursts == pytest.approx((5 + 2) / (2 + 2))
    assert found.tau_of_counters == pytest.approx(1 + 3 / 2)
    assert (found.engine_rounds, found.engine_drafted, found.engine_accepted) == (2, 8, 3)


@pytest.mark.parametrize(
    ("limits", "good"),
    [
        ({"first_token_s": 0.02}, 1),
        ({"per_token_s": 0.02}, 1),
        ({"request_s": 0.1}, 2),
        ({"request_s": 0.1, "first_token_s": 0.005}, 0),
    ],
)
def test_goodput_counts_requests_that_keep_every_limit(limits: dict[str, float], good: int) -> None:
    found = served(**limits)
    assert found.good_share == good / 2
    assert found.goodput == pytest.approx(good / 0.1)


def test_what_was_not_streamed_or_not_timed_is_unknown() -> None:
    silent = replace(record("1", [2], [5]), arrived=[], arrival_ns=[], first_token_ns=None)
    assert serving(Columns.of([silent]), {}) is None
    untimed = serving(Columns.of([record("1", [1, 2], [0, 0], timed=False)]), {})
    assert untimed is not None
    assert untimed.tau_of_bursts == 2
    assert math.isnan(untimed.request.p50)


def test_a_subset_keeps_the_bursts_of_its_generations() -> None:
    columns = Columns.of(RECORDS)
    second = columns.subset(np.array([False, True]))
    assert second.burst_tokens.tolist() == [1, 1, 1]
    assert second.burst_ns.tolist() == [30 * MS, 50 * MS, 90 * MS]
    joined = Columns.join([second, columns])
    assert joined.num_bursts.tolist() == [3, 3, 3]
    assert joined.burst_tokens.tolist() == [1, 1, 1, 1, 3, 2, 1, 1, 1]
