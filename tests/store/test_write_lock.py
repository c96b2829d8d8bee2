"""Lease: one writer a run, seen from other nodes by its beat."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from harness.store import write_lock
from harness.store.write_lock import LOCK, Holder, Lease, RunBusy, holder, last_holder


def written_by(folder: Path, host: str, pid: int, age_s: float = 0) -> None:
    (folder / LOCK).write_text(json.dumps({"host": host, "pid": pid}))
    os.utime(folder / LOCK, (time.time() - age_s,) * 2)


def test_a_writer_is_seen_while_it_writes(tmp_path: Path) -> None:
    assert holder(tmp_path) is None
    taken = Lease(tmp_path)
    assert holder(tmp_path) == Holder(os.uname().nodename, os.getpid())
    with pytest.raises(RunBusy, match=f"process {os.getpid()} on {os.uname().nodename} is writing"):
        Lease(tmp_path)
    taken.close()
    assert holder(tmp_path) is last_holder(tmp_path) is None
    Lease(tmp_path).close()


def test_a_writer_beats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(write_lock, "BEAT_S", 0.02)
    taken = Lease(tmp_path)
    os.utime(tmp_path / LOCK, (0, 0))
    deadline = time.monotonic() + 600
    while holder(tmp_path) is None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert holder(tmp_path)
    taken.close()


def test_a_writer_that_died_is_seen_at_once_here_and_elsewhere_when_its_beat_lapses(
    tmp_path: Path,
) -> None:
    gone = 2**22 + 1  # above every process number
    written_by(tmp_path, os.uname().nodename, gone)
    assert holder(tmp_path) is None
    assert last_holder(tmp_path) == Holder(os.uname().nodename, gone)
    written_by(tmp_path, "elsewhere", gone, age_s=write_lock.LAPSE_S / 2)
    assert holder(tmp_path) == Holder("elsewhere", gone)
    written_by(tmp_path, "elsewhere", gone, age_s=write_lock.LAPSE_S + 1)
    assert holder(tmp_path) is None


def test_where_a_lock_does_not_reach_another_node_its_beat_keeps_it_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written_by(tmp_path, "elsewhere", 7)
    waited: list[float] = []

    def other_beats(seconds: float) -> None:
        waited.append(seconds)
        os.utime(tmp_path / LOCK, (time.time() + 1, time.time() + 1))

    with monkeypatch.context() as patch:
        patch.setattr(write_lock.time, "sleep", other_beats)
        with pytest.raises(RunBusy, match="process 7 on elsewhere"):
            Lease(tmp_path)
        # The other node has died: nothing beats any more.
        patch.setattr(write_lock.time, "sleep", waited.append)
        Lease(tmp_path).close()
    assert len(waited) == 2
    assert all(0 < seconds <= write_lock.LAPSE_S for seconds in waited)


def test_the_lock_of_an_older_version_is_nobodys(tmp_path: Path) -> None:
    (tmp_path / LOCK).write_text("4711\n")
    assert holder(tmp_path) is None
    Lease(tmp_path).close()
