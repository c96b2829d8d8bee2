"""W&B: what is written offline is read back and holds the numbers of the table; its failures stop nothing."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_module

from harness.analysis.row import to_json
from harness.analysis.summary import summarise
from harness.cli import report_command
from harness.store.records import BASELINE, Run
from harness.store.run_store import load_run
from harness.tracking import run_log
from harness.tracking.run_log import group_of
from harness.tracking.tracker import NoTracker, Tracker
from harness.tracking.wandb_tracker import WHOLE, WandbTracker
from tests.support.builders import sample_run, write_runs

_BLOCK, _WHOLE, _LAST = 32768, 1, 4


def stored(tmp_path: Path) -> Run:
    """A run on the disk, as the tracker finds it."""
    write_runs([sample_run()], tmp_path)
    (folder,) = (tmp_path / "runs").iterdir()
    return load_run(folder)


def chunks(data: bytes) -> Iterator[bytes]:
    """Messages of a .wandb file: LevelDB's log format (blocks of 32 KiB) behind a header of seven bytes."""
    place, message = 7, b""
    while place + 7 <= len(data):
        left = _BLOCK - place % _BLOCK
        if left < 7:
            place += left
            continue
        size, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
        if place + 7 + size > len(data):
            return
        message += data[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (_WHOLE, _LAST):
            yield message
            message = b""


def read_back(folder: Path, most_seconds: float = 600.0) -> list[Any]:
    """Every record of a .wandb file; W&B's own process may still be writing when a run has ended."""
    from wandb.proto import wandb_internal_pb2

    (file,) = folder.glob("*.wandb")
    end = time.monotonic() + most_seconds
    found: list[Any] = []
    while not (found and found[-1].HasField("exit")):
        assert time.monotonic() < end, "no record of the exit"
        time.sleep(0.05)
        found = []
        for message in chunks(file.read_bytes()):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(message)
            found.append(record)
    return found


def items(updates: Any) -> dict[str, Any]:
    return {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in updates}


def test_an_offline_run_holds_the_numbers_of_the_table(tmp_path: Path) -> None:
    run = stored(tmp_path)
    rows = {row.method: to_json(row) for row in summarise(run)}
    WandbTracker(dir=str(tmp_path / "wandb"), tags=("mine",)).finish(run, summarise(run), [])
    folders = sorted((tmp_path / "wandb" / "wandb").glob("offline-run-*"))
    assert len(folders) == len(run.manifest.arms)
    seen = set()
    for folder in folders:
        records = read_back(folder)
        (header,) = [record.run for record in records if record.HasField("run")][:1]
        assert header.run_group == group_of(run.manifest.cell)
        assert set(header.tags) == {"full", "eager", "T=0", "coupled", "identical", "mine"}
        config = items(header.config.update)
        summary: dict[str, Any] = {}
        history = []
        for record in records:
            if record.HasField("summary"):
                summary |= items(record.summary.update)
            if record.HasField("history"):
                history.append(items(record.history.item))
        kept = {record.artifact.type for record in records if record.HasField("artifact")}
        arm = header.job_type
        assert ("results" in kept) == (arm == BASELINE)
        assert (config["method"], config["run"]) == (arm, run.manifest.run_id)
        assert {name: config[name] for name in vars(run.manifest.cell)} == vars(run.manifest.cell)
        measured = [record for record in run.records if record.arm == arm]
        assert sum("prompt/tokens" in point for point in history) == len(measured)
        assert [point["prompt/tokens"] for point in history if "prompt/tokens" in point] == [
            len(record.output_ids) for record in measured
        ]
        (table,) = [point for point in history if point.get("prompts._type") == "table-file"]
        assert table["prompts.nrows"] == len(measured)
        for key in ("speedup", "tau", "verdict", "tokens_per_s", "num_tokens"):
            assert summary[key] == rows[arm][key], key
        assert [summary["speedup_ci_low"], summary["speedup_ci_high"]] == rows[arm]["speedup_ci"]
        # A number that is only in the summary gets no panel.
        assert history[-1]["speedup"] == rows[arm]["speedup"]
        assert not any(key.startswith("prompt/") for key in summary)
        charts = {key.split("_table")[0] for key in history[-1] if key.startswith("charts/")}
        of_the_run = {"charts/speedup", "charts/tokens_per_s"}
        of_an_arm = {"charts/kept", "charts/acceptance", "charts/time"}
        assert charts == ({"charts/time"} | of_the_run if arm == BASELINE else of_an_arm)
        assert ("report._type" in history[-1]) == (arm == BASELINE)
        seen.add(arm)
    assert seen == set(run.manifest.arms)


def test_the_page_of_a_run_is_logged_once_and_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = stored(tmp_path)
    bound = 100
    monkeypatch.setattr(run_log, "PAGE_SHOWN", bound)
    WandbTracker(dir=str(tmp_path / "wandb")).finish(run, summarise(run), [])
    (logged,) = (tmp_path / "wandb").rglob("report*.html")
    text = logged.read_text()
    assert f'"num_kept":{len(run.exhibits)}' in text
    shown = [json.loads(found) for found in re.findall(r'"ids":(\[[\d,]*\])', text)]
    assert 0 < sum(map(len, shown)) <= bound
    assert len(shown) < len(run.exhibits)


def test_only_what_is_missing_is_written(tmp_path: Path) -> None:
    run = stored(tmp_path)
    tracker = WandbTracker(dir=str(tmp_path / "wandb"))
    for _ in range(2):
        tracker.finish(run, summarise(run), [])
        folders = sorted((tmp_path / "wandb" / "wandb").glob("offline-run-*"))
        assert len(folders) == len(run.manifest.arms)
    shutil.rmtree(next(folder for folder in folders if folder.name.endswith("-vanilla")))
    sent = tracker.send(run, summarise(run), [])
    assert (sent.now, sent.already) == (["vanilla"], ["ngram", "suffix"])
    assert len(list((tmp_path / "wandb" / "wandb").glob("offline-run-*"))) == len(folders)


def test_a_file_that_broke_off_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb

    run = stored(tmp_path)
    tracker = WandbTracker(dir=str(tmp_path / "wandb"))

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("no room")

    with monkeypatch.context() as patch:
        patch.setattr(wandb.plot, "bar", fail)
        with pytest.raises(RuntimeError, match="no room"):
            tracker.send(run, summarise(run), [])
    (broken,) = (tmp_path / "wandb" / "wandb").glob("offline-run-*")
    assert not (broken / WHOLE).exists()
    assert tracker.send(run, summarise(run), []).now == list(run.manifest.arms)


def test_sync_offline_writes_the_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = stored(tmp_path)
    command = ["sync", "--results", str(tmp_path), "tracker.mode=offline"]
    assert report_command.main(command) == 0
    assert json.loads(capsys.readouterr().out)["sent"] == {run.manifest.run_id: list(run.manifest.arms)}
    assert len(list(tmp_path.glob("wandb/wandb/offline-run-*"))) == len(run.manifest.arms)
    assert report_command.main(command) == 0
    assert json.loads(capsys.readouterr().out)["sent"] == {}


def test_a_failing_wandb_is_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import wandb

    def fail(**_: Any) -> None:
        raise RuntimeError("no room on\nthe disk")

    monkeypatch.setattr(wandb, "init", fail)
    run = stored(tmp_path)
    WandbTracker(dir=str(tmp_path / "wandb")).finish(run, summarise(run), [])
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert "no room on the disk" in told
    assert "tracker=none" in told


@pytest.mark.parametrize("tracker", [NoTracker(), WandbTracker(mode="disabled")])
def test_without_a_tracker_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tracker: Tracker
) -> None:
    run = stored(tmp_path)
    monkeypatch.chdir(tmp_path)
    tracker.finish(run, summarise(run), [])
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


def test_wandb_is_imported_only_when_used() -> None:
    code = "import sys, harness.tracking.wandb_tracker; sys.exit('wandb' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("variable", "mode"), [(None, "offline"), ("disabled", "disabled"), ("online", "online")]
)
def test_the_mode_is_that_of_the_environment_unless_it_is_typed(
    monkeypatch: pytest.MonkeyPatch, variable: str | None, mode: str
) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    if variable:
        monkeypatch.setenv("WANDB_MODE", variable)
    with initialize_config_module("conf", version_base="1.3"):
        assert compose("bench", overrides=["tracker=wandb"]).tracker.mode == mode
        assert compose("bench", overrides=["tracker.mode=offline"]).tracker.mode == "offline"
