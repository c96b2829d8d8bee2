"""Charging: shares of the measured time, and when a generation's first and last token were there."""

from __future__ import annotations

from harness.decoding.batch import Generation
from harness.decoding.charging import charge


def generations(*num_rounds: int) -> list[Generation]:
    return [Generation(emitted=[1] * number, output_ids=[7] * (1 + number)) for number in num_rounds]


def test_shares_add_up_and_latencies_count_what_others_took() -> None:
    spans = [
        ("prefill", 10),
        ("draft", 4),
        ("verify", 20),
        ("other", 2),
        ("draft", 3),
        ("verify", 5),
        ("other", 1),
    ]
    made = charge(generations(1, 2), [[0, 1]], [[0, 1], [1]], spans, 49)
    assert sum(one.total_ns for one in made) == 49
    assert [one.prefill_ns for one in made] == [5, 5]
    assert [one.draft_ns for one in made] == [[2], [2, 3]]
    assert [one.verify_ns for one in made] == [[10], [10, 5]]
    assert [one.latency_ns for one in made] == [36, 45]


def test_the_first_token_is_there_at_the_end_of_the_prefill_that_made_it() -> None:
    """The second sequence takes the place of the first one: it has waited, which is not its own time."""
    spans = [("prefill", 10), ("draft", 4), ("other", 2), ("prefill", 7), ("draft", 1), ("other", 1)]
    made = charge(generations(1, 1), [[0], [1]], [[0], [1]], spans, 25)
    assert [one.first_token_ns for one in made] == [10, 7]
    assert [one.latency_ns for one in made] == [16, 9]


def test_without_a_clock_nothing_is_known_of_the_first_token() -> None:
    (made,) = charge(generations(2), [[0]], [[0], [0]], [], 0)
    assert made.first_token_ns is None
    assert made.verify_ns == [0, 0]
