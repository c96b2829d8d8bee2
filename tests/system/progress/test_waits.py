"""Waits: what is done and how long the rest takes, as lines or as a bar; nothing without a watcher."""

from __future__ import annotations

import io
from collections.abc import Iterator

import pytest

from harness.system.console import Console
from harness.system.progress import Wait, waiting, watched_by


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    clock = Clock()
    right = Wait.__init__
    monkeypatch.setattr(Wait, "__init__", lambda self, what, **given: right(self, what, **given, clock=clock))
    return clock


def test_without_a_watcher_a_wait_is_only_counted() -> None:
    with waiting("loading", total=2) as wait:
        wait.step("first")
        wait.advance()
    assert (wait.done, wait.share) == (1, 0.5)


def test_counted_steps_say_how_long_the_rest_takes(clock: Clock) -> None:
    with waiting("timing", total=4) as wait:
        assert wait.left_s is None
        clock.now = 30.0
        wait.step("static")
        wait.advance()
    assert wait.message() == "static, 1 of 4, 0:30 so far, about 1:30 left"


def test_what_cannot_be_counted_says_what_it_usually_takes(clock: Clock) -> None:
    with waiting("converting", usual_s=25) as wait:
        clock.now = 10.0
        assert wait.message() == "0:10 so far, about 0:15 left"
        assert wait.share == pytest.approx(0.4)
        clock.now = 30.0
        assert wait.message() == "0:30 so far, longer than usual"
        assert wait.share == 1.0


def test_off_a_terminal_a_wait_is_a_line_ever_more_rarely_and_its_seconds_in_the_end(clock: Clock) -> None:
    console = Console(file := io.StringIO())
    with watched_by(console.display), waiting("timing", total=100, timed=True) as wait:
        for _ in range(50):
            clock.now += 1.0
            wait.advance()
    lines = file.getvalue().splitlines()
    assert lines[0] == "timing: 5 of 100, 0:05 so far, about 1:35 left"
    assert [line.split(" so far")[0].rsplit(" ", 1)[1] for line in lines[:-1]] == [
        "0:05",
        "0:10",
        "0:20",
        "0:40",
    ]
    assert lines[-1] == "timing: 0:50"


def test_a_short_wait_leaves_no_line(clock: Clock) -> None:
    console = Console(file := io.StringIO())
    with console.watching(), waiting("reading", total=2) as wait:
        clock.now = 4.9
        wait.advance()
    assert file.getvalue() == ""


def test_an_error_ends_the_wait(clock: Clock) -> None:
    console = Console(file := io.StringIO())

    def failing() -> None:
        with console.watching(), waiting("reading"):
            clock.now = 7.0
            raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        failing()
    assert file.getvalue() == "reading: 0:07\n"
    assert console.display._waits == []
