"""By batch: where a method ceases to pay, in numbers, tables and a figure."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from harness.analysis.batch_scaling import break_even, break_even_of, by_batch, curves
from harness.analysis.summary import summarise
from harness.reports import figures, tables
from harness.reports.markdown import markdown
from harness.store.records import Verdict
from tests.support.builders import make_record, make_run

SPEED = {1: 2.0, 4: 1.25, 16: 0.5}


def run_at(batch: int, speed: float, verdict: str = "identical"):  # type: ignore[no-untyped-def]
    plain = [make_record("vanilla", f"c{i:02}", [0] * 4, [0] * 4, batch_size=batch) for i in range(3)]
    ours = [
        make_record(
            "ngram",
            one.conversation,
            [1, 1],
            [2, 2],
            batch_size=batch,
            total_ns=int(one.total_ns / speed),
            latency_ns=batch * int(one.total_ns / speed),
            verdict=Verdict(verdict),  # type: ignore[arg-type]
        )
        for one in plain
    ]
    return make_run([*plain, *ours], f"tiny.smoke.greedy.{batch}", batch_size=batch)


def rows_of(**verdicts: str):  # type: ignore[no-untyped-def]
    return summarise([run_at(batch, speed, **verdicts) for batch, speed in SPEED.items()])


def test_the_break_even_lies_on_the_line_over_the_logarithm_of_the_batch() -> None:
    # From 1.25 at 4 to 0.5 at 16 a third of the way is 1: 4 * 4 ** (1 / 3).
    assert break_even(list(SPEED.items())).batch == pytest.approx(4 * 4 ** (1 / 3))
    assert break_even([(1, 1.5), (8, 1.0)]) == (None, "above 8")
    assert break_even([(1, 0.9), (8, 0.4)]) == (None, "below 1")
    # Where it dips and comes back, what counts is where it goes below for good.
    assert break_even([(1, 2), (2, 0.5), (4, 1.5), (8, 0.5)]).text == f"{4 * math.sqrt(2):.1f}"
    assert break_even([(1, 2), (2, 0.5), (4, 1.5)]).text == "above 4"


def test_rows_of_one_setting_are_put_together_by_batch_with_latency_and_break_even() -> None:
    (group,) = by_batch(rows_of())
    assert [row.where.batch_size for row in curves(group)["ngram"]] == [1, 4, 16]
    end = break_even_of(curves(group)["ngram"])
    assert end is not None
    headers, body = tables.batches_table(group)
    assert headers[-1] == "break-even batch"
    lines = {(line[0], line[1]): dict(zip(headers, line, strict=True)) for line in body}
    assert lines["ngram", "1"]["break-even batch"] == end.text
    assert lines["vanilla", "1"]["break-even batch"] == "-"
    # 5 rounds of 10 ms at half the time, of which 4 run at the same time.
    assert lines["ngram", "4"]["s / sequence"] == f"{4 * 0.05 / 1.25:.2f}"
    assert "by batch" in markdown(rows_of())


def test_one_batch_alone_has_no_curve_and_a_broken_one_no_break_even(tmp_path: Path) -> None:
    one = summarise(run_at(1, 2.0))
    assert by_batch(one) == []
    assert "by batch" not in markdown(one)
    (group,) = by_batch(rows_of(verdict="broken"))
    assert break_even_of(curves(group)["ngram"]) is None
    assert not list(tmp_path.iterdir())


def test_the_figure_by_batch_is_drawn_once_and_the_same_every_time(tmp_path: Path) -> None:
    first, second = (figures.draw(rows_of(), tmp_path / name) for name in ("a", "b"))
    drawn = [path for path in first if "batches" in path.name]
    assert sorted(path.name for path in drawn) == ["tiny.greedy-batches.png", "tiny.greedy-batches.svg"]
    again = [path for path in second if "batches" in path.name]
    assert [path.read_bytes() for path in drawn] == [path.read_bytes() for path in again]
