"""Faults of the writers of a store: they are killed, or their disk is full."""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from functools import partial
from io import StringIO
from pathlib import Path

from harness.cli import report_command
from harness.store.locations import RUNS, run_folder
from harness.store.records import Run
from harness.store.run_store import load_runs, read_folder
from harness.store.upkeep.archives import compact, expand
from scripts.faults import child
from scripts.faults.child import Send
from scripts.faults.made_up import NUM_BLOCKS, attempts, expected, expected_loads, records_of, write_run
from scripts.faults.tally import Tally

Packer = Callable[[Path, Callable[[str], None]], object]


def kills(folder: Path, number: int, rng: random.Random) -> Tally:
    """Kill writers and packers `number` times, and complete each run in between."""
    tally, root = Tally("kills"), folder / RUNS
    whole_s = _warm_up(folder / "warm-up")
    for tried in range(10 * number):
        if tally.tried >= number:
            break
        run, before = f"run-{tried}", tally.tried
        shutil.rmtree(root, ignore_errors=True)
        write, sent = partial(write_run, root, run), set[str]()
        for _ in range(rng.randint(1, 6)):
            # The kills of a run should fall into all of its parts, and most of them before its end.
            left_s = whole_s * (1.1 - len(sent) / NUM_BLOCKS)
            sent |= {*child.run_and_kill(tally, write, rng.uniform(0, left_s), f"writing {run}")}
        begin, num_left = time.monotonic(), NUM_BLOCKS - len(sent)
        child.run_to_end(tally, write, f"completing {run}")
        if num_left > NUM_BLOCKS // 2:
            whole_s = (time.monotonic() - begin) * NUM_BLOCKS / num_left
        for packer in (compact, expand) if rng.random() < 0.4 else ():
            where = f"{packer.__name__} of {run}"
            child.run_and_kill(tally, partial(_pack, packer, root), rng.uniform(0, 0.05), where)
        if _is_whole(tally, root, run):
            tally.survived += tally.tried - before
    return tally


def _warm_up(folder: Path) -> float:
    """Seconds of writing a run, measured once this process has all that is made on first use.

    Children that are forked before that spend most of their lives on it, and few are killed while they write.
    """
    for name in ("first", "second"):
        shutil.rmtree(folder, ignore_errors=True)
        begin = time.monotonic()
        write_run(folder, name)
    return time.monotonic() - begin


def disks(folder: Path, number: int, rng: random.Random) -> Tally:
    """Fill the disk under a writer: a small one where this process may mount it, else a limit of files."""
    tally, disk = Tally("disks"), folder / "disk"
    disk.mkdir(parents=True, exist_ok=True)
    for tried in range(number):
        run, size, root = f"run-{tried}", rng.randrange(8, 120) * 1024, disk / RUNS
        with _small_disk(disk, size) as give_room:
            limit = 0 if give_room else size // 4
            child.run_to_end(tally, partial(_write_full, root, run, limit), f"full disk of {run}")
            tally.tried += 1
            tally.how["a small disk" if give_room else "a limit of files"] += 1
            if give_room:
                give_room()
            child.run_to_end(tally, partial(write_run, root, run), f"resuming {run}")
            tally.survived += _is_whole(tally, root, run)
            shutil.rmtree(root, ignore_errors=True)
    return tally


def whole_runs(folder: Path, number: int, rng: random.Random) -> Tally:
    """Stop processes of the benchmark itself on a tiny random model, then let it finish."""
    tally, results = Tally("whole runs"), folder / "results"
    words = "~experiment target=tiny task=smoke method=[ngram] measure=acceptance max_new_tokens=16"
    command = [sys.executable, "-m", "harness.bench", *words.split(), "tracker=none", f"results={results}"]
    shutil.rmtree(results, ignore_errors=True)
    while tally.tried < number:
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            begin = time.monotonic()
            while process.poll() is None and not list((results / RUNS).glob("*/journal.jsonl")):
                time.sleep(0.01)
            span_s = rng.uniform(0, max(3.0, 0.3 * (time.monotonic() - begin)))
            with suppress(subprocess.TimeoutExpired):
                process.wait(span_s)
            is_alive = process.poll() is None
            tally.tried += is_alive
            tally.how["killed" if is_alive else "finished"] += 1
            process.send_signal(rng.choice((signal.SIGKILL, signal.SIGTERM)))
        if not is_alive:
            shutil.rmtree(results, ignore_errors=True)
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    if ended.returncode:
        tally.fault("tracebacks", f"the last command: {ended.stderr[-500:]}")
    for run in load_runs(results / RUNS):
        places = Counter((one.conversation, one.arm, one.turn, one.sample, one.repeat) for one in run.records)
        conversations = int(run.manifest.prompts["num_conversations"])
        tally.doubled += sum(count - 1 for count in places.values())
        tally.lost += conversations - len({place[0] for place in places})
    tally.survived = 0 if tally.num_faults else tally.tried
    return tally


@contextmanager
def _small_disk(disk: Path, size: int) -> Iterator[Callable[[], None] | None]:
    """Mount a disk of `size` bytes and give what makes it larger; None where it cannot be mounted."""
    if os.path.ismount(disk):
        # An earlier call was killed.
        subprocess.run(["umount", str(disk)], check=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "faults", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        yield None
        return
    try:
        yield lambda: _run("mount", "-o", "remount,size=64m", str(disk))
    finally:
        _run("umount", str(disk))


def _run(*command: str) -> None:
    subprocess.run(command, check=True)


def _write_full(root: Path, run: str, limit: int, send: Send) -> None:
    if limit:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    # A full disk is an error that a command reports.
    with suppress(OSError):
        write_run(root, run, send)


def _pack(packer: Packer, root: Path, _: Send) -> None:
    packer(root, lambda _: None)


def _is_whole(tally: Tally, root: Path, run: str) -> bool:
    """Whether a run is whole after everything that was done to it; read by a process of its own."""
    before = tally.num_faults
    lines = child.run_to_end(tally, partial(_check, root, run), f"reading {run}")
    if lines:
        lost, doubled, notes = json.loads(lines[-1])
        tally.lost, tally.doubled = tally.lost + lost, tally.doubled + doubled
        tally.notes += notes
    return before == tally.num_faults


def _check(root: Path, name: str, send: Send) -> None:
    """Send what a run lacks and what it has twice, packed and in a folder."""
    found = Tally("")
    for packer in (compact, expand):
        packer(root, lambda _: None)
        runs = load_runs(root)
        for run in runs:
            _compare(found, run, f"{name} after {packer.__name__}")
        _compare_attempts(found, run_folder(root / name), f"{name} after {packer.__name__}")
        if [run.manifest.run_id for run in runs] != [name]:
            found.fault("lost", f"{name}: the store holds {len(runs)} runs")
    with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        if report_command.main(["verify", "--results", str(root.parent)]):
            found.fault("lost", f"{name} is not verified")
    send(json.dumps([found.lost, found.doubled, found.notes]))


def _compare(tally: Tally, run: Run, where: str) -> None:
    """Count what a run lacks, and what it has twice."""
    if not run.finished:
        tally.fault("lost", f"{where} is not finished")
    places = Counter((one.conversation, one.arm, one.repeat) for one in run.records)
    tally.doubled += sum(number - 1 for number in places.values())
    missing = sum(one not in run.records for one in expected(run.manifest.run_id))
    missing += sum(one not in run.loads for one in expected_loads())
    if missing:
        tally.lost += missing
        tally.notes.append(f"lost: {missing} records and loads of {where}")


def _compare_attempts(tally: Tally, folder: Path, where: str) -> None:
    """Count measurements that a journal lacks or has twice, those included that do not count."""
    manifest, journal = read_folder(folder)
    found = [(one.load, one.records) for one in (*journal.set_aside, *journal.blocks.values())]
    for block in range(NUM_BLOCKS):
        for attempt in attempts(block):
            due = (attempt.load, records_of(manifest.run_id, block, attempt.number))
            if (copies := found.count(due)) != 1:
                note = f"measurement {attempt.number} of c{block} is there {copies} times"
                tally.fault("doubled" if copies else "lost", f"{where}: {note}")
    if len(found) > (most := sum(len(attempts(block)) for block in range(NUM_BLOCKS))):
        tally.fault("doubled", f"{where} holds {len(found)} measurements, and {most} were made")
