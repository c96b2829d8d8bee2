"""The last screen of a benchmark: what fits is shown, and what does not is named."""

from __future__ import annotations

import pytest

from harness.analysis.summary import summarise
from harness.cli.last_screen import show_rows
from harness.system.console import Console
from tests.support.builders import make_record, make_run


def vanilla(total_ns: int, prefill_ns: int, timed: bool = True) -> dict[str, int | bool]:
    return {"total_ns": total_ns, "prefill_ns": prefill_ns, "timed": timed}


def test_the_share_of_prefill_is_vanillas_by_temperature(capsys: pytest.CaptureFixture[str]) -> None:
    slow = make_record("vanilla", "a", [0], [0], **vanilla(90_000_000, 9_000_000))
    quick = make_record("vanilla", "b", [0], [0], **vanilla(10_000_000, 1_000_000))
    other = make_record("ngram", "a", [1], [3], **vanilla(90_000_000, 80_000_000))
    warm = make_record("vanilla", "a", [0], [0], **vanilla(80_000_000, 20_000_000))
    untimed = make_record("vanilla", "a", [0], [0], **vanilla(0, 0, timed=False))
    served = make_record("vanilla", "a", [0], [0], **vanilla(90_000_000, 0))
    runs = [
        make_run([slow, other], "first"),
        make_run([quick], "second"),
        make_run([warm], "third", temperature=1.0),
        make_run([untimed], "fourth", temperature=0.5, profile="acceptance"),
        make_run([served], "fifth", temperature=0.7),
    ]
    show_rows(summarise(runs), runs, Console())
    printed = capsys.readouterr().err
    assert "of vanilla's it is 10.0 % at T = 0, 25.0 % at T = 1\n" in printed


def test_columns_without_room_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    runs = [make_run([make_record("vanilla", "a"), make_record("a_method_with_a_long_name", "a")])]
    console = Console()
    console.rich.width = 60
    show_rows(summarise(runs), runs, console)
    printed = capsys.readouterr().err
    assert "only in the report, for want of room: " in printed
    assert all(column in printed for column in ("method", "tokens/s", "speedup", "tau", "verdict"))
