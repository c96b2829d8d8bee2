"""The machine lock: timed work has its cores to itself, other work shares them, and nobody starves."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_module

from harness.benchmark import job
from harness.config import ConfigError
from harness.system import machine_lock as lock_module
from harness.system.console import Console
from harness.system.machine_lock import cores, machine_lock, units_of

HOLD = """
import sys
from harness.system.machine_lock import machine_lock
with machine_lock(sys.argv[2:], sys.argv[1] == "timed", print):
    print("held", flush=True)
    sys.stdin.read()
"""


class Other:
    """Another process, which holds units until it is killed."""

    def __init__(self, how: str, *units: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", HOLD, how, *units],
            cwd=Path(__file__).parents[2],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout
        assert self._process.stdout.readline() == "held\n"

    def kill(self) -> None:
        self._process.kill()
        self._process.communicate()


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(lock_module.FOLDER, str(tmp_path))


@pytest.fixture
def others() -> Iterator[list[Other]]:
    found: list[Other] = []
    yield found
    for one in found:
        one.kill()


class Waiting(threading.Thread):
    """A thread of this process that waits for units."""

    def __init__(self, order: list[str], name: str, timed: bool, *units: str) -> None:
        super().__init__(name=name, daemon=True)
        self.notes: list[str] = []
        self._order, self._timed, self._units = order, timed, units
        self.start()

    def run(self) -> None:
        with machine_lock(self._units, self._timed, self.notes.append):
            self._order.append(self.name)
            time.sleep(0.05)

    def waits(self) -> bool:
        deadline = time.monotonic() + 600
        while not self.notes and self.is_alive() and time.monotonic() < deadline:
            time.sleep(0.01)
        return bool(self.notes) and self.is_alive()


@pytest.mark.parametrize(("theirs", "ours"), [("timed", True), ("timed", False), ("untimed", True)])
def test_a_timed_run_shares_its_cores_with_no_other(others: list[Other], theirs: str, ours: bool) -> None:
    others.append(Other(theirs, "core-0", "core-1"))
    order: list[str] = []
    waiting = Waiting(order, "ours", ours, "core-1", "core-2")
    assert waiting.waits()
    who = "a run" if ours else "a timed run"
    assert waiting.notes == [f"waiting for {who} that has core-1, core-2 of this machine"]
    # The operating system releases the lock of a killed process.
    others[0].kill()
    waiting.join(5)
    assert order == ["ours"]
    assert waiting.notes[1:] == ["waited 0 s"]


def test_free_cores_and_untimed_runs_are_not_waited_for(others: list[Other]) -> None:
    others += [Other("timed", "core-0"), Other("untimed", "core-1")]
    notes: list[str] = []
    with machine_lock(["core-2"], True, notes.append), machine_lock(["core-1"], False, notes.append):
        pass
    assert notes == []


def test_a_timed_run_is_not_kept_waiting_by_those_who_come_after_it(others: list[Other]) -> None:
    others.append(Other("untimed", "core-0"))
    order: list[str] = []
    timed = Waiting(order, "timed", True, "core-0")
    assert timed.waits()
    # It could share with the holder, but the timed run came first.
    later = Waiting(order, "later", False, "core-0")
    assert later.waits()
    others[0].kill()
    timed.join(5)
    later.join(5)
    assert order == ["timed", "later"]


def test_a_cpu_run_occupies_the_cores_it_may_run_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for cpu, siblings in enumerate(["0,2", "1,3", "0,2", "1,3"]):
        place = tmp_path / f"cpu{cpu}" / "topology"
        place.mkdir(parents=True)
        (place / "thread_siblings_list").write_text(f"{siblings}\n")
    monkeypatch.setattr(lock_module, "_CPUS", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {2, 3, 9}, raising=False)
    # Two threads of one core count once; a processor without topology counts as a core of its own.
    assert cores() == [0, 1, 9]
    assert units_of(torch.device("cpu"), False) == ["core-0", "core-1", "core-9"]
    # The processes of one run must not wait for one another.
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert units_of(torch.device("cpu"), False) == []


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_run_occupies_its_gpu() -> None:
    (unit,) = units_of(torch.device("cuda", 0), False)
    assert unit.startswith("gpu-")


@pytest.mark.parametrize(("measure", "timed"), [("quick", True), ("acceptance", False)])
def test_a_job_holds_what_it_occupies_before_it_loads_anything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, measure: str, timed: bool
) -> None:
    requests = []

    def refuse(*given: object) -> None:
        requests.append(given)
        raise ConfigError("not today")

    monkeypatch.setattr(job, "machine_lock", refuse)
    monkeypatch.setattr(job, "Session", None)
    given = ["target=tiny", "target.device=cpu", f"measure={measure}", f"results={tmp_path}", "~experiment"]
    with initialize_config_module("conf", version_base="1.3"):
        ours = job.Job(compose("bench", overrides=given), given, Console())
    ours.run(False)
    assert ours.outcome()["errors"] == ["not today"]
    assert [one[:2] for one in requests] == [([f"core-{core}" for core in cores()], timed)]


def test_a_folder_for_locks_that_is_not_there_is_told_and_not_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(lock_module.FOLDER, str(tmp_path / "typo"))
    with (
        pytest.raises(ConfigError, match=r"SPECBENCH_LOCKS=.*typo: no such folder; create it"),
        machine_lock(["core-0"], True, print),
    ):
        pass
    assert list(tmp_path.iterdir()) == []
