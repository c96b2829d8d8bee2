"""Sending of stored runs: what is derived from them is whole before it is sent."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import pytest

from harness.analysis.summary import summarise
from harness.reports.figures import draw_once
from harness.store.records import Run
from harness.store.run_store import load_runs
from harness.system.console import Console
from harness.tracking.sync import send_all
from harness.tracking.tracker import DashboardTracker, Sent
from tests.support.builders import sample_run, write_runs


@pytest.mark.parametrize("num_bytes", [0, 1000])
def test_sync_draws_a_figure_again_of_which_there_is_half(
    num_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_runs([sample_run()], tmp_path)
    (run,) = load_runs(tmp_path / "runs")
    half, *_ = draw_once(summarise(run), Path(run.folder) / "figures")
    whole = half.read_bytes()
    half.write_bytes(whole[:num_bytes])
    sent: list[Path] = []

    class Dashboard:
        def check(self) -> None:
            pass

        def send(self, run: Run, rows: object, drawn: list[Path]) -> Sent:
            sent.extend(drawn)
            return Sent(list(run.manifest.arms), [])

    outcome = send_all(cast(DashboardTracker, Dashboard()), [run], tmp_path, Console())
    assert not outcome["failed"]
    assert half in sent
    assert half.read_bytes() == whole
