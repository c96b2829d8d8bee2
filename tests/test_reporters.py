"""Reporters: everything on stderr, progress with a rate and an end, and no reporter can fail a run."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import pytest

from harness.records import GenerationRecord, Run, RunManifest
from harness.reporters import Console, Reporters
from tests.builders import make_record, sample_run


class Failing:
    def start(self, manifest: RunManifest) -> None:
        raise RuntimeError("start\nfailed")

    def record(self, record: GenerationRecord) -> None:
        raise RuntimeError("record failed")

    def finish(self, run: Run, rows: Sequence[Any], files: Sequence[Any]) -> None:
        raise RuntimeError("finish failed")


def test_the_console_writes_to_stderr_only(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console()
    console.note("a note")
    console.warn("careful")
    console.error(ValueError("wrong"))
    console.table(["method", "tau"], [["ngram", "1.50"]], title="A table")
    said = capsys.readouterr()
    assert said.out == ""
    for text in ("a note", "warning: careful", "error: wrong", "A table", "ngram", "1.50"):
        assert text in said.err


def test_progress_off_a_terminal_tells_rate_and_end_now_and_then() -> None:
    file, times = io.StringIO(), iter(range(0, 1000, 10))
    console = Console(file, interval_s=15.0, clock=lambda: float(next(times)))
    console.plan(4)
    console.start(sample_run().manifest)
    for _ in range(4):
        console.record(make_record(accepted=(1, 0)))
    lines = [line for line in file.getvalue().splitlines() if "generations" in line]
    assert lines == [
        "2/4 generations, 0.4 tokens/s, 0:20 left, now ngram",
        "4/4 generations, 0.4 tokens/s, 0:00 left, now ngram",
    ]


def test_a_failing_reporter_is_a_warning_and_the_others_are_told() -> None:
    file = io.StringIO()
    run = sample_run()
    reporters = Reporters(Console(file), Failing())
    reporters.start(run.manifest)
    reporters.record(make_record())
    reporters.finish(run, [], [])
    said = file.getvalue()
    assert "Failing failed (RuntimeError: start failed). The run itself is safe in the store." in said
    assert said.count("Failing failed") == 3
    assert f"run {run.manifest.run_id}" in said
