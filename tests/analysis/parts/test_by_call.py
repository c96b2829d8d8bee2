"""Numbers by round, sample and turn, and along the output, are those of a hand count."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from harness.analysis.parts.by_call import draft_shapes, windows
from harness.analysis.row import Row
from harness.analysis.summary import summarise
from harness.reports import by_call
from harness.reports.markdown import markdown
from harness.store.records import GenerationRecord, Run
from tests.support.builders import ROUND_NS, make_record, make_run

ROUNDS = {"decoding": {}, "scenario": {"num_rounds": 2}}
SAMPLES = {"decoding": {}, "scenario": {"num_samples": 2}}


def record(arm: str, accepted: tuple[int, ...], conversation: str = "a", **place: int) -> GenerationRecord:
    drafted = [0 if arm == "vanilla" else 9] * len(accepted)
    return make_record(arm, conversation, accepted, drafted, **place)


def two_calls(name: str, **changes: object) -> Run:
    """Sam keeps nothing in the first call and two tokens a round in the second; vanilla writes the same."""
    records = []
    for conversation in ("a", "b"):
        for number, lengths in enumerate([(0,) * 6, (2, 2)]):
            place = {name: number}
            records += [
                record("vanilla", (0,) * 6, conversation, **place),
                record("sam", lengths, conversation, **place),
            ]
    return make_run(records, config=ROUNDS if name == "turn" else SAMPLES, **changes)


def row_of(run: Run, method: str = "sam") -> Row:
    return next(row for row in summarise(run) if row.method == method)


@pytest.mark.parametrize(("name", "kind"), [("turn", "round"), ("sample", "sample")])
def test_each_call_has_its_own_tau_and_speedups(name: str, kind: str) -> None:
    row = row_of(two_calls(name))
    assert [(call.kind, call.number, call.num_generations) for call in row.calls] == [
        (kind, 1, 2),
        (kind, 2, 2),
    ]
    assert [call.tau for call in row.calls] == [1, 3]
    # Seven rounds with the prefill, or three, for seven tokens.
    assert [call.speedup for call in row.calls] == pytest.approx([1, 7 / 3])
    assert [call.speedup_mean_of_rates for call in row.calls] == pytest.approx([1, 7 / 3])
    assert [call.tokens_per_s for call in row.calls] == pytest.approx(
        [7 / (7 * ROUND_NS * 1e-9), 7 / (3 * ROUND_NS * 1e-9)]
    )
    assert [call.tau for call in row_of(two_calls(name), "vanilla").calls] == [1, 1]


def test_the_mean_of_rates_is_not_the_ratio_of_totals() -> None:
    records = [
        *(record("vanilla", (0,) * 9, "a", turn=turn) for turn in (0, 1)),
        *(record("vanilla", (0,) * 3, "b", turn=turn) for turn in (0, 1)),
        *(record("sam", (9 - 1,), "a", turn=turn) for turn in (0, 1)),
        *(record("sam", (0,) * 3, "b", turn=turn) for turn in (0, 1)),
    ]
    first = row_of(make_run(records, config=ROUNDS)).calls[0]
    assert first.speedup == pytest.approx((10 + 4) / (2 + 4))
    assert first.speedup_mean_of_rates == pytest.approx((5 + 1) / (1 + 1))


def test_samples_of_several_seeds_are_counted_from_one_for_each_seed() -> None:
    records = [
        record(arm, (sample % 2,) * 4 if arm == "sam" else (0,) * 4 * (1 + sample % 2), sample=sample)
        for arm in ("vanilla", "sam")
        for sample in range(6)
    ]
    row = row_of(make_run(records, config=SAMPLES))
    assert [(call.number, call.tau, call.num_generations) for call in row.calls] == [(1, 1, 3), (2, 2, 3)]


def test_turns_of_a_conversation_are_turns_and_one_call_has_no_line() -> None:
    turns = make_run([record("vanilla", (0,), turn=turn) for turn in (0, 1)])
    assert [call.kind for call in row_of(turns, "vanilla").calls] == ["turn", "turn"]
    seeds = make_run([record("vanilla", (0,), sample=seed) for seed in (0, 1)])
    assert row_of(seeds, "vanilla").calls == ()
    assert by_call.csv(summarise(seeds)) == ""
    assert "Call by call" not in markdown(summarise(seeds))


def test_untimed_calls_have_no_speed() -> None:
    records = [
        make_record(arm, "a", (0, 0), (0, 0), turn=turn, timed=False)
        for arm in ("vanilla", "sam")
        for turn in (0, 1)
    ]
    first = row_of(make_run(records, config=ROUNDS)).calls[0]
    assert first.tau == 1
    assert math.isnan(first.speedup)
    assert math.isnan(first.tokens_per_s)


def test_forced_tokens_are_counted() -> None:
    forced = make_record("vanilla", "a", (0, 0, 0), (0, 0, 0), forced=[0, 1, 1], turn=0)
    free = make_record("vanilla", "a", (0, 0, 0), (0, 0, 0), forced=[0, 0, 0], turn=1)
    run = make_run([forced, free], config=ROUNDS)
    assert [call.num_forced for call in row_of(run, "vanilla").calls] == [2, 0]


def test_the_table_and_the_csv_show_every_call() -> None:
    rows = summarise(two_calls("turn"))
    headers, body = by_call.table(rows)
    assert [line[headers.index("call")] for line in body if line[0] == "sam"] == ["round 1", "round 2"]
    assert all(len(line) == len(headers) for line in body)
    written = by_call.csv(rows).splitlines()
    assert len(written) == 1 + len(body) == 5
    assert {"tau", "tau_ci_low", "tau_ci_high", "speedup_mean_of_rates"} <= set(written[0].split(","))
    report = markdown(rows)
    assert "### Call by call" in report
    assert "| sam | round 2 |" in report


def test_windows_pool_the_rounds_that_began_in_them() -> None:
    one = record("sam", (1,) * 3 + (0,) * 5)
    # Output tokens before each round: 1, 3, 5, 7, 8, 9, 10, 11.
    assert windows([one], width=4) == pytest.approx((2, (2 + 1) / 2, 1))
    assert windows([one]) == pytest.approx([(6 + 5) / 8])
    assert row_of(make_run([one, record("vanilla", (0,) * 11)])).windows == windows([one])


def test_shapes_of_drafts_are_averaged_over_the_rounds_that_began_in_a_window() -> None:
    one = replace(record("cast", (1, 1, 0, 0)), drafted=[6, 2, 4, 8], depth=[3, 1, 2, 2])
    # Output tokens before each round: 1, 3, 5, 6.
    first, second = draft_shapes([one], width=4)
    assert (first.nodes, first.levels) == (4, 2)
    assert (second.nodes, second.levels) == (6, 2)
