"""W&B: what is written offline is read back and holds the numbers of the table; its failures stop nothing."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.records import Run
from harness.row import json_rows
from harness.rows import summarise
from harness.store import load_run
from harness.wandb_reporter import NoTracker, WandbTracker
from tests.builders import sample_run, write_runs

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


def read_back(folder: Path, most_seconds: float = 60.0) -> list[Any]:
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
    rows = json_rows(summarise(run))
    WandbTracker(dir=str(tmp_path / "wandb")).finish(run, rows, [])
    folders = sorted((tmp_path / "wandb" / "wandb").glob("offline-run-*"))
    assert len(folders) == len(run.manifest.arms)
    seen = {}
    for folder in folders:
        records = read_back(folder)
        (header,) = [record.run for record in records if record.HasField("run")][:1]
        assert header.run_group == run.manifest.run_id
        config = items(header.config.update)
        summary: dict[str, Any] = {}
        history = []
        for record in records:
            if record.HasField("summary"):
                summary |= items(record.summary.update)
            if record.HasField("history"):
                history.append(items(record.history.item))
        kept = {record.artifact.type for record in records if record.HasField("artifact")}
        assert "results" in kept
        arm = header.job_type
        assert config["arm"] == arm
        measured = [record for record in run.records if record.arm == arm]
        assert sum("prompt/tokens" in point for point in history) == len(measured)
        assert [point["prompt/tokens"] for point in history if "prompt/tokens" in point] == [
            len(record.output_ids) for record in measured
        ]
        (table,) = [point for point in history if point.get("prompts._type") == "table-file"]
        assert table["prompts.nrows"] == len(measured)
        seen[arm] = summary
    for row in rows:
        if row["method"] in seen:
            told = seen[row["method"]]
            for key in ("speedup", "tau", "verdict", "tokens_per_s", "num_tokens"):
                assert told[key] == row[key], key


def test_only_what_is_missing_is_written(tmp_path: Path) -> None:
    run = stored(tmp_path)
    tracker = WandbTracker(dir=str(tmp_path / "wandb"))
    for _ in range(2):
        tracker.finish(run, json_rows(summarise(run)), [])
        folders = sorted((tmp_path / "wandb" / "wandb").glob("offline-run-*"))
        assert len(folders) == len(run.manifest.arms)
    shutil.rmtree(folders[0])
    tracker.finish(run, json_rows(summarise(run)), [])
    assert len(list((tmp_path / "wandb" / "wandb").glob("offline-run-*"))) == len(folders)


def test_a_failing_wandb_is_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import wandb

    def fail(**_: Any) -> None:
        raise RuntimeError("no room on\nthe disk")

    monkeypatch.setattr(wandb, "init", fail)
    run = stored(tmp_path)
    WandbTracker(dir=str(tmp_path / "wandb")).finish(run, json_rows(summarise(run)), [])
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert "no room on the disk" in told
    assert "tracker=none" in told


@pytest.mark.parametrize("tracker", [NoTracker(), WandbTracker(mode="disabled")])
def test_without_a_tracker_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tracker: NoTracker
) -> None:
    run = stored(tmp_path)
    monkeypatch.chdir(tmp_path)
    tracker.finish(run, json_rows(summarise(run)), [])
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


def test_wandb_is_imported_only_when_used() -> None:
    code = "import sys, harness.wandb_reporter; sys.exit('wandb' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
