"""Progress of a run: a rate and an expected end, also where there is no terminal."""

from __future__ import annotations

import io

from harness.benchmark.run_progress import RunProgress
from harness.system.console import Console
from tests.support.builders import make_record, sample_run


def test_progress_off_a_terminal_tells_rate_and_end_now_and_then() -> None:
    file, times = io.StringIO(), iter(range(0, 1000, 10))
    progress = RunProgress(Console(file), interval_s=15.0, clock=lambda: float(next(times)))
    progress.plan(4)
    progress.start(sample_run().manifest)
    for _ in range(4):
        progress.record(make_record(accepted=(1, 0)))
    lines = [line for line in file.getvalue().splitlines() if "generations" in line]
    assert lines == [
        "2/4 generations, 0.4 tokens/s, 0:20 left, now ngram",
        "4/4 generations, 0.4 tokens/s, 0:00 left, now ngram",
    ]
