"""Exclusive: timed work has its cores to itself, other work shares, and nobody is kept waiting for ever."""

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
from harness.system import machine_lock
from harness.system.console import Console
from harness.system.machine_lock import cores, held, units_of

HOLD = """
import sys
from harness.system.machine_lock import held
with held(sys.argv[2:], sys.argv[1] == "timed", print):
    print("held", flush=True)
    sys.stdin.read()
"""


class Other:
    """Another process, which holds units until it is told to go on."""

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
    monkeypatch.setenv(machine_lock.FOLDER, str(tmp_path))


@pytest.fixture
def others() -> Iterator[list[Other]]:
    found: list[Other] = []
    yield found
    for one in found:
        one.kill()


class Waiting(threading.Thread):
    """Somebody in this process who wants units."""

    def __init__(self, order: list[str], name: str, timed: bool, *units: str) -> None:
        super().__init__(name=name, daemon=True)
        self.told: list[str] = []
        self._order, self._timed, self._units = order, timed, units
        self.start()

    def run(self) -> None:
        with held(self._units, self._timed, self.told.append):
            self._order.append(self.name)
            time.sleep(0.05)

    def waits(self) -> bool:
        deadline = time.monotonic() + 60
        while not self.told and self.is_alive() and time.monotonic() < deadline:
            time.sleep(0.01)
        return bool(self.told) and self.is_alive()


@pytest.mark.parametrize(("theirs", "ours"), [("timed", True), ("timed", False), ("untimed", True)])
def test_what_is_timed_shares_its_cores_with_nobody(others: list[Other], theirs: str, ours: bool) -> None:
    others.append(Other(theirs, "core-0", "core-1"))
    order: list[str] = []
    waiting = Waiting(order, "ours", ours, "core-1", "core-2")
    assert waiting.waits()
    who = "a run" if ours else "a timed run"
    assert waiting.told == [f"waiting for {who} that has core-1, core-2 of this machine"]
    # Not a word of goodbye is needed.
    others[0].kill()
    waiting.join(5)
    assert order == ["ours"]
    assert waiting.told[1:] == ["waited 0 s"]


def test_other_cores_and_what_is_not_timed_go_on_at_once(others: list[Other]) -> None:
    others += [Other("timed", "core-0"), Other("untimed", "core-1")]
    told: list[str] = []
    with held(["core-2"], True, told.append), held(["core-1"], False, told.append):
        pass
    assert told == []


def test_a_timed_run_is_not_kept_waiting_by_those_who_come_after_it(others: list[Other]) -> None:
    others.append(Other("untimed", "core-0"))
    order: list[str] = []
    timed = Waiting(order, "timed", True, "core-0")
    assert timed.waits()
    # It could share with the holder, but it came later than the one who waits.
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
    monkeypatch.setattr(machine_lock, "_CPUS", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {2, 3, 9}, raising=False)
    # Two threads of one core are one core; a processor that nothing is known of is its own.
    assert cores() == [0, 1, 9]
    assert units_of(torch.device("cpu"), False) == ["core-0", "core-1", "core-9"]
    # The processes of one run do not wait for one another.
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
    asked = []

    def refuse(*given: object) -> None:
        asked.append(given)
        raise ConfigError("not today")

    monkeypatch.setattr(job, "held", refuse)
    monkeypatch.setattr(job, "Session", None)
    given = ["target=tiny", "target.device=cpu", f"measure={measure}", f"results={tmp_path}", "~experiment"]
    with initialize_config_module("conf", version_base="1.3"):
        ours = job.Job(compose("bench", overrides=given), given, Console())
    ours.run(False)
    assert ours.outcome()["errors"] == ["not today"]
    assert [one[:2] for one in asked] == [([f"core-{core}" for core in cores()], timed)]
