"""Trackio: the same logs as W&B's, sent once; without the package, a run is refused before it measures."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from harness.analysis.summary import summarise
from harness.bench import bench
from harness.cli import hydra_app, report_command
from harness.config import ConfigError
from harness.store.run_store import load_runs
from harness.tracking import trackio_tracker
from harness.tracking.run_log import arm_log
from harness.tracking.trackio_tracker import TrackioTracker
from tests.support.builders import sample_run, write_runs

HERE = importlib.util.find_spec("trackio") is not None
NEEDS = pytest.mark.skipif(not HERE, reason="needs the package trackio, an extra")


def sync(results: Path) -> dict[str, Any]:
    """In a process of its own, as Trackio has one folder a process."""
    words = [
        sys.executable,
        "-m",
        "harness.report",
        "sync",
        "--tracker",
        "trackio",
        "--results",
        str(results),
    ]
    done = subprocess.run(words, check=True, capture_output=True, text=True)
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def read_back(results: Path, name: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Points and configuration of a run."""
    code = (
        "import json, sys; from trackio.sqlite_storage import SQLiteStorage as s; p, n = sys.argv[1:];"
        " print(json.dumps([s.get_logs(p, n), s.get_run_config(p, n)], default=str))"
    )
    words = [sys.executable, "-c", code, "specbench-harness", name]
    environment = {"TRACKIO_DIR": str(results / "trackio"), "HOME": str(results)}
    done = subprocess.run(words, check=True, capture_output=True, text=True, env=environment)
    points, config = json.loads(done.stdout.splitlines()[-1])
    return points, config


@NEEDS
def test_the_database_holds_the_logs_of_every_arm_once(tmp_path: Path) -> None:
    write_runs([sample_run()], tmp_path)
    (run,) = load_runs(tmp_path / "runs")
    assert sync(tmp_path)["sent"] == {run.manifest.run_id: list(run.manifest.arms)}
    assert sync(tmp_path)["already"] == {run.manifest.run_id: list(run.manifest.arms)}
    rows = summarise(run)
    for arm in run.manifest.arms:
        log = arm_log(run, arm, rows, [])
        points, config = read_back(tmp_path, log.name)
        assert len(points) == len(log.history) + 1
        for point, values in zip(points, log.history, strict=False):
            assert {key: point[key] for key in values} == values
        assert {key: points[-1][key] for key in log.numbers} == log.numbers
        assert set(log.shown) <= set(points[-1])
        assert (config["method"], config["_Group"]) == (arm, log.group)


def test_without_the_package_a_run_is_refused_with_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(trackio_tracker, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="pip install trackio"):
        TrackioTracker().require()
    write_runs([sample_run()], tmp_path / "stored")
    assert report_command.main(["sync", "--tracker", "trackio", "--results", str(tmp_path / "stored")]) == 2
    assert "pip install trackio" in capsys.readouterr().err
    words = ["bench", "~experiment", "target=tiny", "tracker=trackio", f"results={tmp_path / 'results'}"]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as ended:
        hydra_app.main(bench)
    assert ended.value.code == 2
    assert "pip install trackio" in capsys.readouterr().err
    assert list((tmp_path / "results" / "runs").iterdir()) == []
