"""Sweeps: the status comes from the folder; a killed worker leaves a failed row, which typing again mends."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import yaml

from harness import sweep
from harness.config import ConfigError, configurable
from harness.store.journal import JOURNAL
from harness.store.run_store import MANIFEST, load_run, load_runs
from harness.store.upkeep.archives import compact
from harness.store.write_lock import Lease
from harness.sweeps.launchers import refuse_secrets
from harness.sweeps.status import CELLS, SWEEP
from harness.target.random_target import TinyTarget
from methods.vanilla import Vanilla
from tests.support.typing_in import type_bench

ROOT = Path(__file__).parents[2]


@configurable
class Trap(Vanilla):
    """Kills its process where a file of its name is, and takes the file away; waits where `NAME.gate` is."""

    folder: str
    name: str

    def propose(self, *given: Any) -> Any:
        mine, gate = Path(self.folder) / self.name, Path(self.folder) / f"{self.name}.gate"
        if mine.exists():
            mine.unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        while gate.exists():
            time.sleep(0.05)
        return super().propose(*given)


class Sweep:
    """A command line, typed in a process of its own."""

    def __init__(self, folder: Path, *overrides: str) -> None:
        self.results, prompts = folder / "results", folder / "prompts.jsonl"
        lines = [{"question_id": i, "category": "a", "turns": [f"one two {i} one two"]} for i in range(4)]
        prompts.write_text("\n".join(map(json.dumps, lines)))
        self.arguments = [
            *("--multirun", "~experiment", "target=tiny", "task=local", f"task.path={prompts}", "method=[]"),
            *("measure=acceptance", "measure.batch_size=1", "tracker=none", "max_new_tokens=8"),
            *(f"results={self.results}", *overrides),
        ]

    def type(self, **environment: str) -> Ended:
        done = subprocess.run(
            [sys.executable, "-m", "harness.bench", *self.arguments],
            cwd=ROOT,
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            timeout=3000,
        )
        return Ended(done.returncode, done.stdout, done.stderr)


class Ended(NamedTuple):
    status: int
    out: str
    err: str


def type_here(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> Ended:
    """The same command in this process, which saves the imports."""
    monkeypatch.setattr("harness.benchmark.job.draw_once", lambda *_: [])
    return Ended(*type_bench(arguments, monkeypatch, capsys))


def status_of(results: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, Any], str]:
    capsys.readouterr()
    ended = sweep.main(["status", "--results", str(results)])
    out, err = capsys.readouterr()
    return ended, json.loads(out), err


def load_runs_of(swept: Sweep) -> list[Any]:
    """The runs that have a manifest by now."""
    return [load_run(path.parent) for path in swept.results.glob(f"runs/*/{MANIFEST}")]


def assert_complete(results: Path, num_cells: int) -> None:
    runs = load_runs(results / "runs")
    measured = [run for run in runs if run.records]
    assert len(measured) == num_cells
    assert all(run.finished and not run.failures for run in measured)
    keys = Counter((r.arm, r.conversation, r.repeat) for run in measured for r in run.records)
    assert set(keys.values()) == {num_cells}, "none lost, none double"


def test_the_status_counts_done_running_failed_and_missing_cells(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    swept = Sweep(tmp_path, "method=[ngram]", "methods.ngram.draft_length=3,4,5,6,0", "dry_run=false")
    swept.arguments.remove("method=[]")
    ended = type_here(monkeypatch, capsys, swept.arguments)
    folders = {
        load_run(Path(name)).manifest.config["methods"]["ngram"]["draft_length"]: Path(name)
        for name in json.loads(ended.out)["run_dirs"]
    }
    shutil.rmtree(folders[4])
    for length in (5, 6):
        journal = (folders[length] / JOURNAL).read_bytes().splitlines(keepends=True)
        end = next(place for place, line in enumerate(journal) if b'"finish_block"' in line)
        (folders[length] / JOURNAL).write_bytes(b"".join(journal[: end + 1]))
    writer = Lease(folders[5])
    status, found, err = status_of(swept.results, capsys)
    writer.close()
    assert status == 1
    states = [(cell["state"], cell["share"]) for cell in found["cells"]]
    assert states == [("done", 1), ("missing", 0), ("running", 0.25), ("failed", 0.25), ("failed", 0)]
    assert found["counts"] == {"done": 1, "running": 1, "failed": 2, "missing": 1}
    took = found["cells"][0]["seconds"]
    # One, three quarters, three quarters, and the one that cannot begin; one at a time.
    assert found["seconds_left"] == pytest.approx(took * (1 + 0.75 + 0.75 + 1))
    assert f"process {os.getpid()} on {socket.gethostname()}" in err
    assert "methods.ngram.draft_length=6 greedy: after 25%: its process is gone" in err
    assert "greater than or equal to 1" in err
    assert "to measure the rest: python -m harness.bench --multirun" in err

    # The same command measures what is missing, and no more.
    before = load_run(folders[3]).manifest.created, (folders[3] / JOURNAL).stat().st_mtime
    type_here(monkeypatch, capsys, swept.arguments)
    status, found, err = status_of(swept.results, capsys)
    assert found["counts"] == {"done": 4, "running": 0, "failed": 1, "missing": 0}
    assert before == (load_run(folders[3]).manifest.created, (folders[3] / JOURNAL).stat().st_mtime)

    # Runs in an archive are as done as they were.
    compact(swept.results / "runs", lambda _: None)
    assert not folders[3].exists()
    assert status_of(swept.results, capsys)[1]["counts"] == found["counts"]


def test_a_sweep_of_next_replicates_is_not_done_by_earlier_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    swept = Sweep(tmp_path, "+measure.order_seed=0,1", "replicate=next")
    assert type_here(monkeypatch, capsys, swept.arguments).status == 0
    assert status_of(swept.results, capsys)[1]["counts"]["done"] == 2
    (typed,) = swept.results.glob(f"jobs/*/*/{SWEEP}")
    os.utime(typed, (time.time() + 60,) * 2)
    _, found, err = status_of(swept.results, capsys)
    assert found["counts"]["missing"] == 2
    assert "time left: not known" in err


def test_a_folder_without_a_sweep_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sweep.main(["status", "--results", str(tmp_path)]) == 2
    assert "holds no sweep" in capsys.readouterr().err
    assert sweep.main(["status", str(tmp_path)]) == 2
    assert "not the folder of a sweep" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("launcher", "missing"),
    [
        ("processes", "hydra_plugins.hydra_joblib_launcher.joblib_launcher"),
        ("ray", "ray"),
        ("slurm", "hydra_plugins.hydra_submitit_launcher.submitit_launcher"),
    ],
)
def test_a_launcher_that_is_not_installed_is_named_with_what_to_type(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    launcher: str,
    missing: str,
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    swept = Sweep(tmp_path, f"hydra/launcher={launcher}", "+measure.order_seed=0,1")
    ended = type_here(monkeypatch, capsys, swept.arguments)
    assert ended.status == 2
    assert f"hydra/launcher={launcher}: needs" in ended.err
    assert 'pip install "specbench-harness[' in ended.err


needs_joblib = pytest.mark.skipif(
    importlib.util.find_spec("joblib") is None, reason="the extra joblib is not installed"
)
has_ray = importlib.util.find_spec("ray") is not None
needs_ray = pytest.mark.skipif(not has_ray, reason="the extra ray is not installed")
needs_slurm = pytest.mark.skipif(
    not all(map(shutil.which, ("slurmctld", "slurmd", "slurmdbd", "munged", "mariadbd")))
    or os.geteuid() != 0
    or importlib.util.find_spec("submitit") is None,
    reason="needs slurm-wlm, slurmdbd, munge, mariadb-server, root and the extra slurm",
)


@needs_joblib
@pytest.mark.parametrize(("device", "measure"), [("cpu", "quick"), ("cuda", "acceptance")])
def test_processes_take_nothing_that_is_timed_or_on_a_gpu(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    device: str,
    measure: str,
) -> None:
    monkeypatch.setattr(TinyTarget, "resolved_device", lambda _: torch.device(device))
    swept = Sweep(tmp_path, "hydra/launcher=processes", "+measure.order_seed=0,1")
    swept.arguments[swept.arguments.index("measure=acceptance")] = f"measure={measure}"
    ended = type_here(monkeypatch, capsys, swept.arguments)
    assert ended.status == 2
    assert "side by side" in ended.err
    assert not (swept.results / "runs").exists()


def lost(swept: Sweep) -> set[str]:
    """Messages in the store about workers that died."""
    return {fault.message for run in load_runs_of(swept) for fault in run.failures if fault.kind == "lost"}


def traps(tmp_path: Path, *names: str) -> tuple[Path, list[str]]:
    folder = tmp_path / "traps"
    folder.mkdir()
    return folder, [
        "+methods.trap._target_=tests.sweeps.test_sweeps.Trap",
        f"+methods.trap.folder={folder}",
        f"+methods.trap.name={','.join(names)}",
    ]


@needs_joblib
def test_a_killed_worker_of_joblib_is_a_failed_row_that_the_same_command_mends(tmp_path: Path) -> None:
    folder, overrides = traps(tmp_path, "free", "fatal")
    (folder / "fatal").touch()
    swept = Sweep(tmp_path, "hydra/launcher=processes", "hydra.launcher.n_jobs=2", *overrides)
    first = swept.type()
    assert first.status == 1, first.err
    assert "FAILED" in first.err
    assert all("SIGKILL" in message for message in lost(swept))
    assert len(json.loads(first.out)["run_dirs"]) == 2
    assert lost(swept)
    second = swept.type()
    assert second.status == 0, second.err
    assert_complete(swept.results, 2)
    third = swept.type()
    assert "the cells of all but 0 jobs" in third.err
    before, after = json.loads(second.out), json.loads(third.out)
    assert after["rows"] == before["rows"]
    assert sorted(after["run_dirs"]) == sorted(before["run_dirs"])


@needs_ray
def test_a_killed_worker_of_ray_is_a_failed_row_and_the_others_continue(tmp_path: Path) -> None:
    folder, overrides = traps(tmp_path, "fatal", "free")
    (folder / "fatal").touch()
    start = ["hydra/launcher=ray", "+hydra.launcher.init.num_cpus=1", "hydra.launcher.remote.num_gpus=0"]
    swept = Sweep(tmp_path, *start, *overrides)
    first = swept.type()
    assert first.status == 1, first.err
    assert "FAILED" in first.err
    assert len(json.loads(first.out)["run_dirs"]) == 2
    assert all(message.startswith("Ray: ") for message in lost(swept))
    measured = {run.manifest.config["methods"]["trap"]["name"]: run for run in load_runs_of(swept)}
    assert measured["free"].finished
    assert not measured["fatal"].finished
    assert lost(swept)
    second = swept.type()
    assert second.status == 0, second.err
    assert_complete(swept.results, 2)


@pytest.fixture
def slurm(tmp_path: Path) -> Iterator[dict[str, str]]:
    """A Slurm on loopback; the environment that finds it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {"SLURM_PORT": str(port), "SLURM_CONF": str(tmp_path / "slurm" / "slurm.conf")}
    script = [str(ROOT / "scripts" / "slurm_loopback.sh"), "start", str(tmp_path / "slurm")]
    try:
        subprocess.run(script, env={**os.environ, **environment}, check=True, stdout=2, timeout=900)
        yield environment
    finally:
        script[1] = "stop"
        subprocess.run(script, env={**os.environ, **environment}, check=True, timeout=900)


@needs_slurm
def test_slurm_mends_a_killed_worker_with_the_same_command_and_resumes_a_requeued_one(
    tmp_path: Path, slurm: dict[str, str]
) -> None:
    folder, overrides = traps(tmp_path, "fatal", "requeued")
    (folder / "fatal").touch()
    (folder / "requeued.gate").touch()
    start = ["hydra/launcher=slurm", "hydra.launcher.gpus_per_task=null", "hydra.launcher.cpus_per_task=1"]
    swept = Sweep(tmp_path, *start, *overrides)
    requeued: list[str] = []

    def requeue() -> None:
        """The second job, once it waits at its gate."""
        deadline = time.monotonic() + 900
        squeue = ["squeue", "-h", "-r", "-t", "R", "-o", "%i"]
        while time.monotonic() < deadline and not requeued:
            time.sleep(0.1)
            done = subprocess.run(squeue, env={**os.environ, **slurm}, capture_output=True, text=True)
            begun = [run.manifest.config["methods"]["trap"]["name"] for run in load_runs_of(swept)]
            requeued.extend(job for job in done.stdout.split() if job.endswith("_1") and "requeued" in begun)
        for job in requeued:
            subprocess.run(["scontrol", "requeue", job], env={**os.environ, **slurm}, check=True)
        (folder / "requeued.gate").unlink()

    thread = threading.Thread(target=requeue)
    thread.start()
    first = swept.type(**slurm)
    thread.join()
    assert requeued
    assert first.status == 1, first.err
    assert "FAILED" in first.err
    (reason,) = lost(swept)
    assert "ended as FAILED, its log is" in reason
    second = swept.type(**slurm)
    assert second.status == 0, second.err
    assert_complete(swept.results, 2)


def stranger(folder: Path, **changes: Any) -> Path:
    """The folder of a sweep, as Hydra leaves it, that somebody sent."""
    hydra = {
        "sweeper": {"_target_": "hydra._internal.core_plugins.basic_sweeper.BasicSweeper", "params": None},
        "overrides": {"task": ["~experiment", "target=tiny", "task=smoke", "method=[]"], "hydra": []},
        "runtime": {"cwd": str(folder)},
    }
    content = {"results": "results", "hydra": hydra}
    for path, value in changes.items():
        node: Any = content
        *parents, last = path.split("__")
        for name in parents:
            node = node[name]
        node[last] = value
    (folder / SWEEP).write_text(yaml.safe_dump(content))
    return folder


REFERENCE = "${oc.env:A_SECRET}"


@pytest.mark.parametrize(
    "changes",
    [
        {"hydra__overrides__task": ["~experiment", "target=tiny", f"+target.note={REFERENCE}"]},
        {"hydra__overrides__task": ["~experiment", "target=tiny", f"target.name={REFERENCE}"]},
        {"hydra__overrides__task": ["~experiment", "target=tiny", f"target.name='{REFERENCE}'"]},
        {"hydra__overrides__task": ["~experiment", "target=tiny", "target.name=${oc.env:A_${x}SECRET}"]},
        {"hydra__overrides__task": ["~experiment", f"target={REFERENCE}"]},
        {"hydra__overrides__task": ["~experiment", f"task={REFERENCE},smoke", "target=tiny"]},
        {"hydra__sweeper__params": {"target.name": REFERENCE}},
        {"hydra__runtime__cwd": REFERENCE},
        {"results": REFERENCE},
        {"hydra__overrides__hydra": [f"hydra.job.name={REFERENCE}"]},
        {"hydra__sweeper___target_": REFERENCE},
    ],
)
def test_the_status_of_a_strangers_sweep_resolves_nothing_that_it_reads(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    changes: dict[str, Any],
) -> None:
    monkeypatch.setenv("A_SECRET", "abcdefgh12345678")
    # Redaction would hide what must not be read in the first place.
    monkeypatch.setattr("harness.system.secrets._SECRET_VARIABLE", re.compile("never"))
    monkeypatch.chdir(tmp_path)
    status = sweep.main(["status", str(stranger(tmp_path, **changes))])
    out, err = capsys.readouterr()
    assert status in (0, 2)
    assert "abcdefgh" not in out + err
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and b"abcdefgh" in path.read_bytes()]


def test_the_status_finds_a_cell_whose_overrides_hold_an_interpolation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MY_PROMPTS", str(tmp_path / "prompts.jsonl"))
    swept = Sweep(tmp_path, "+measure.order_seed=0,1")
    index = next(i for i, one in enumerate(swept.arguments) if one.startswith("task.path="))
    swept.arguments[index] = "task.path=${oc.env:MY_PROMPTS}"
    assert type_here(monkeypatch, capsys, swept.arguments).status == 0
    monkeypatch.delenv("MY_PROMPTS")
    _, found, err = status_of(swept.results, capsys)
    assert found["counts"]["done"] == 2, err


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"hydra__overrides__task": ["hydra.searchpath=[file:///x]"]}, "hydra.searchpath stands among"),
        ({"hydra__overrides__task": "target=tiny"}, "hydra.overrides.task is no list"),
        ({"hydra__overrides__task": ["target=tiny", "=["]}, ""),
        ({"hydra": None}, "hydra.sweeper._target_ is no str"),
        ({"hydra__runtime__cwd": 3}, "hydra.runtime.cwd is no str"),
    ],
)
def test_a_file_that_hydra_did_not_write_is_refused_with_the_place(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], reason: str
) -> None:
    assert sweep.main(["status", str(stranger(tmp_path, **changes))]) == 2
    assert reason in capsys.readouterr().err


@pytest.mark.parametrize(
    "content", ["a: &a [*a]", "!!python/object/apply:os.system [id]", "[" * 5000, "\x00"]
)
def test_yaml_that_would_build_objects_or_never_end_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str
) -> None:
    (tmp_path / SWEEP).write_text(content)
    assert sweep.main(["status", str(tmp_path)]) == 2
    assert str(tmp_path) in capsys.readouterr().err


def test_a_damaged_cache_of_cells_is_made_anew(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = stranger(tmp_path)
    (folder / CELLS).write_text('{"source": 1, "cells": 3')
    assert sweep.main(["status", str(folder)]) == 0
    assert json.loads(capsys.readouterr().out)["counts"]["missing"] == 1


def test_slurm_takes_references_to_secrets_and_no_secrets() -> None:
    refuse_secrets([r"service.api_key=$\{oc.env\:KEY\}", "target=tiny"])
    refuse_secrets(
        ["task.path='https://${oc.env:USER_AND_PASSWORD}@host/x'", "service.api_key=${oc.env:KEY}"]
    )
    for override in ("task.path=https://anna:Pa55word@host/x", "service.api_key=Pa55word"):
        with pytest.raises(ConfigError, match=r"type a reference") as refused:
            refuse_secrets(["target=tiny", override])
        assert "Pa55word" not in str(refused.value)
