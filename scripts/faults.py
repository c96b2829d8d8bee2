"""Try to lose, double or falsify stored runs: python -m scripts.faults FOLDER [--seed N]

Three parts, each repeated with random choices of one seed:

* kills: a process that writes a run with the store's own code (or packs and unpacks it) is killed (-9) at a
  random moment, again and again, until the run is finished. `--whole N` does the same to N processes of
  `python -m harness.bench` on a tiny random model.
* disks: the same writer on a disk that is full after a random number of bytes, which is then given room.
* stores: a store of runs, archives and runs of an older version is damaged in one to three ways (bytes,
  lines, types, links, pipes, archives), then read, verified, packed and resumed.

Prints one JSON line per part: tried, survived, records lost, records doubled, tracebacks, hangs, and the
stores in which damage to what was measured went unnoticed. Exit status 1 if any of these is not 0.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass, field
from functools import partial
from io import StringIO
from pathlib import Path

# Loaded before any child is forked, so that none spends its time on it.
import pandas  # noqa: F401
import pyarrow.parquet  # type: ignore[import-untyped]  # noqa: F401

from harness.cli import report_command
from harness.config import ConfigError
from harness.store.archives import compact, expand
from harness.store.records import Exhibit, GenerationRecord, NullReplay, Probe, Run, Verdict
from harness.store.run_store import ResultStore, load_runs
from harness.sweeps.cell_states import RunIndex
from scripts import damage
from scripts.damage import make_manifest

NUM_BLOCKS = 12
LIMIT_S = 120
"""Seconds after which a child that reads a damaged store counts as hanging."""


@dataclass
class Tally:
    """What one part found."""

    part: str
    tried: int = 0
    survived: int = 0
    lost: int = 0
    doubled: int = 0
    tracebacks: int = 0
    hangs: int = 0
    unnoticed: int = 0
    how: Counter[str] = field(default_factory=Counter)
    """How often each kind of fault was tried, or each answer given."""
    notes: list[str] = field(default_factory=list)

    def fault(self, kind: str, note: str) -> None:
        """Count a fault and keep how it came about."""
        setattr(self, kind, getattr(self, kind) + 1)
        self.notes.append(f"{kind}: {note}")

    @property
    def is_good(self) -> bool:
        """Whether nothing was lost, doubled, unreadable or believed wrongly."""
        return not (self.lost or self.doubled or self.tracebacks or self.hangs or self.unnoticed)

    def show(self) -> None:
        """Print it as one JSON line; notes go to stderr."""
        print(json.dumps({k: v for k, v in vars(self).items() if k != "notes"}), flush=True)
        for note in self.notes:
            print(note, file=sys.stderr, flush=True)


@dataclass
class Child:
    """A forked process that runs `work` with a pipe to this one."""

    work: Callable[[Callable[[str], None]], None]
    """Gets a function that sends a line."""

    def run(self, kill_after_s: float | None = None) -> tuple[list[str], int | None]:
        """The lines that it sent, and its exit status: None if it was killed as asked or did not end."""
        reading, writing = os.pipe()
        pid = os.fork()
        if not pid:
            os.close(reading)
            _in_child(self.work, writing)
        os.close(writing)
        deadline = time.monotonic() + (LIMIT_S if kill_after_s is None else kill_after_s)
        status = None
        while status is None and time.monotonic() < deadline:
            done, code = os.waitpid(pid, os.WNOHANG)
            status = os.waitstatus_to_exitcode(code) if done else None
            if not done:
                time.sleep(0.0005)
        if status is None:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        with os.fdopen(reading, "rb") as pipe:
            return pipe.read().decode().splitlines(), status


def _in_child(work: Callable[[Callable[[str], None]], None], writing: int) -> None:
    def send(line: str) -> None:
        os.write(writing, f"{line}\n".encode())

    status = 0
    try:
        work(send)
    except BaseException:
        send("TRACEBACK " + " | ".join(traceback.format_exc().splitlines()[-6:]))
        status = 3
    finally:
        os._exit(status)


def make_record(run: str, block: int, arm: str, repeat: int) -> GenerationRecord:
    """A record that its place alone decides."""
    drawn = random.Random(f"{run} {block} {arm}")
    drafted = [0 if arm == "vanilla" else 4] * 5
    accepted = [drawn.randint(0, most) for most in drafted]
    emitted = [length + 1 for length in accepted]
    # All arms give the same text, as far as they go.
    ids = [random.Random(f"{block} {place}").randrange(259) for place in range(1 + sum(emitted))]
    return GenerationRecord(
        arm=arm,
        conversation=f"c{block}",
        category="made up",
        repeat=repeat,
        prompt_hash="p",
        num_prompt_tokens=5,
        output_ids=ids,
        stop="cap",
        drafted=drafted,
        depth=drafted,
        accepted=accepted,
        emitted=emitted,
        draft_ns=[10] * 5,
        verify_ns=[1000 + block] * 5,
        accept_ns=[10] * 5,
        commit_ns=[10] * 5,
        prefill_ns=2000,
        total_ns=8000 + drawn.randrange(100),
        latency_ns=8000,
        verdict=Verdict("tie", 0, 0.0) if arm != "vanilla" else Verdict("identical"),
    )


def expected(run: str, num_blocks: int = NUM_BLOCKS) -> list[GenerationRecord]:
    """All records of a run, in order."""
    return [
        make_record(run, block, arm, repeat)
        for block in range(num_blocks)
        for arm in ("vanilla", "ngram")
        for repeat in range(2)
    ]


def write_run(
    root: Path,
    run: str,
    send: Callable[[str], None] = lambda _: None,
    num_blocks: int = NUM_BLOCKS,
    finish: bool = True,
) -> None:
    """Write what is missing of a run, and send the name of each block once it is written."""
    with ResultStore(root).open_run(make_manifest(run)) as opened:
        if opened.finished:
            return
        opened.write_probe(Probe(2e10, 60.0, [1000] * 5))
        for block in range(num_blocks):
            name = f"c{block}"
            if name in opened.finished_blocks:
                continue
            opened.begin_block(name)
            records = [one for one in expected(run, num_blocks) if one.conversation == name]
            for record in records:
                opened.write_record(record)
            opened.write_null(NullReplay(name, 10, 0))
            pieces = {token: f"t{token}" for token in records[0].output_ids}
            exhibit = {"arm": "vanilla", "conversation": name, "turn": 0, "prompt": "=Tell me", "trees": []}
            opened.write_exhibit(Exhibit(**exhibit, pieces=pieces))  # type: ignore[arg-type]
            opened.finish_block(name)
            send(name)
        if finish:
            opened.finish()


def compare(tally: Tally, run: Run, told: set[str], where: str) -> None:
    """Count what a run lacks of the blocks that its writers told of, and what it has twice."""
    places = Counter((one.conversation, one.arm, one.repeat) for one in run.records)
    tally.doubled += sum(number - 1 for number in places.values())
    due = [one for one in expected(run.manifest.run_id) if one.conversation in told]
    missing = [one for one in due if one not in run.records]
    if missing:
        tally.lost += len(missing)
        tally.notes.append(f"lost: {len(missing)} records of {where}")


def kills(folder: Path, number: int, rng: random.Random) -> Tally:
    """Kill writers and packers, and complete each run in between."""
    tally, span_s, root = Tally("kills"), 0.05, folder / "runs"
    while tally.tried < number:
        run, told, before = f"run-{tally.tried}", set[str](), tally.tried
        shutil.rmtree(root, ignore_errors=True)
        write = partial(write_run, root, run)
        num_kills, begin = rng.randint(1, 6), time.monotonic()
        for _ in range(num_kills):
            lines, status = Child(write).run(rng.uniform(0, span_s))
            told |= {line for line in lines if not line.startswith("TRACEBACK")}
            _count(tally, lines, status, False, f"writing {run}")
        lines, status = Child(write).run()
        _count(tally, lines, status, True, f"completing {run}")
        # The kills of a run should fall into all of its parts.
        span_s = max(0.02, 0.5 * (span_s + time.monotonic() - begin))
        for packer in (compact, expand) if rng.random() < 0.4 else ():
            lines, status = Child(partial(_pack, packer, root)).run(rng.uniform(0, 0.05))
            _count(tally, lines, status, False, f"{packer.__name__} of {run}")
        if _settled(tally, root, {f"c{block}" for block in range(NUM_BLOCKS)} | told, run):
            tally.survived += tally.tried - before
    return tally


def _pack(
    packer: Callable[[Path, Callable[[str], None]], object], root: Path, _: Callable[[str], None]
) -> None:
    packer(root, lambda _: None)


def _count(tally: Tally, lines: list[str], status: int | None, last: bool, where: str) -> None:
    faults = [line for line in lines if line.startswith("TRACEBACK")]
    if faults:
        tally.fault("tracebacks", f"{where}: {faults[0]}")
    if status is None and last:
        tally.fault("hangs", where)
    elif not last:
        tally.tried += 1
        tally.how["killed" if status is None else "ended before"] += 1


def _settled(tally: Tally, root: Path, told: set[str], run: str) -> bool:
    """Whether a run is whole after everything that was done to it; read by a process of its own."""
    before = (tally.lost, tally.doubled, tally.tracebacks, tally.hangs)

    def check(send: Callable[[str], None]) -> None:
        inner = Tally("")
        for packer in (compact, expand):
            packer(root, lambda _: None)
        for one in load_runs(root):
            compare(inner, one, told, run)
            if not one.finished:
                inner.fault("lost", f"{run} is not finished")
        with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            if report_command.main(["verify", "--results", str(root.parent)]):
                inner.fault("lost", f"{run} is not verified")
        send(json.dumps([inner.lost, inner.doubled, inner.notes]))

    lines, status = Child(check).run()
    _count(tally, lines, status, True, f"reading {run}")
    if status == 0:
        lost, doubled, notes = json.loads(lines[-1])
        tally.lost, tally.doubled = tally.lost + lost, tally.doubled + doubled
        tally.notes += notes
    return before == (tally.lost, tally.doubled, tally.tracebacks, tally.hangs)


def disks(folder: Path, number: int, rng: random.Random) -> Tally:
    """Fill the disk under a writer: a small one where this process may mount it, else a limit of files."""
    tally = Tally("disks")
    disk = folder / "disk"
    disk.mkdir(parents=True, exist_ok=True)
    for tried in range(number):
        run, size = f"run-{tried}", rng.randrange(8, 120) * 1024
        mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "faults", str(disk)]
        mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
        root = disk / "runs"

        limit = 0 if mounted else size // 4
        lines, status = Child(partial(_write_full, root, run, limit)).run()
        _count(tally, lines, status, True, f"full disk of {run}")
        told = {line for line in lines if not line.startswith("TRACEBACK")}
        tally.tried += 1
        tally.how["a small disk" if mounted else "a limit of files"] += 1
        if mounted:
            subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
        lines, status = Child(partial(write_run, root, run)).run()
        _count(tally, lines, status, True, f"resuming {run}")
        if _settled(tally, root, {f"c{block}" for block in range(NUM_BLOCKS)} | told, run):
            tally.survived += 1
        if mounted:
            subprocess.run(["umount", str(disk)], check=True)
        shutil.rmtree(root, ignore_errors=True)
    return tally


def _write_full(root: Path, run: str, limit: int, send: Callable[[str], None]) -> None:
    if limit:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    # A full disk is an error that a command reports.
    with suppress(OSError):
        write_run(root, run, send)


def stores(folder: Path, number: int, rng: random.Random) -> Tally:
    """Damage stores and have them read by every command."""
    tally, base, store = Tally("stores"), folder / "base", folder / "store"
    shutil.rmtree(base, ignore_errors=True)
    Child(lambda _: make_base(base)).run()
    for tried in range(number):
        shutil.rmtree(store, ignore_errors=True)
        shutil.copytree(base, store / "results")
        (store / "outside").write_text("mine")
        # Of several runs, one that is refused would hide what the others do.
        for path in rng.sample(
            runs := sorted((store / "results/runs").glob("[!.]*")), rng.randrange(len(runs))
        ):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        seen = {path.name for path in store.iterdir()}
        did = [damage.apply(store / "results" / "runs", rng) for _ in range(rng.choice((1, 1, 2, 3)))]
        commands = ["load", *rng.sample(sorted(COMMANDS), 2)]
        lines, status = Child(partial(examine, store / "results", commands)).run()
        where = f"store {tried}: {'; '.join(map(str, did))}; then {', '.join(commands)}"
        before = (tally.tracebacks, tally.hangs, tally.unnoticed)
        _count(tally, lines, status, True, where)
        if (store / "outside").read_text() != "mine" or {path.name for path in store.iterdir()} != seen:
            tally.fault("unnoticed", f"{where}: something outside was written")
        if "BELIEVED" in lines and not any(one.forged for one in did):
            tally.fault("unnoticed", f"{where}: read as sound, but not what was written")
        tally.tried += 1
        tally.how.update(one.name for one in did)
        tally.how.update(line for line in lines if line.startswith("load: "))
        tally.survived += before == (tally.tracebacks, tally.hangs, tally.unnoticed)
    return tally


def make_base(results: Path) -> None:
    """Two packed runs, two in folders, one of an older version, and one that is not finished."""
    root = results / "runs"
    for run in ("packed-a", "packed-b"):
        write_run(root, run, num_blocks=2)
    compact(root, lambda _: None)
    for run in ("a", "b", "older"):
        write_run(root, run, num_blocks=2)
    damage.make_older(root / "older")
    write_run(root, "open", num_blocks=2, finish=False)


def build(results: Path) -> int:
    """Every format of the report except figures, which take longest and read nothing of the store."""
    out = str(results.parent / "results" / "out")
    arguments = ["--results", str(results), "--out", out, "--format", "md", "tex", "csv", "html"]
    return report_command.main(["build", *arguments, "--allow-mixed"])


def resume(results: Path) -> int:
    """Open every run for writing, as a command that is typed again."""
    for run in ("a", "open", "older"):
        with suppress(ConfigError, OSError):
            write_run(results / "runs", run, num_blocks=2)
    return 0


def status(results: Path) -> int:
    """Read the states of all runs, as `harness.sweep status` does."""
    with suppress(ConfigError, OSError):
        RunIndex(results / "runs")
    return 0


def _typed(*words: str) -> Callable[[Path], int]:
    return lambda results: report_command.main([*words, "--results", str(results)])


COMMANDS: dict[str, Callable[[Path], int]] = {
    "build": build,
    "verify": _typed("verify"),
    "compact": _typed("compact"),
    "expand": _typed("expand"),
    "migrate": _typed("migrate"),
    "diff": _typed("diff", "a", "b"),
    "replay": _typed("replay", "--length", "2"),
    "resume": resume,
    "status": status,
}


def examine(results: Path, commands: list[str], send: Callable[[str], None]) -> None:
    """Run commands on a damaged store, and say whether it was believed in spite of its damage."""
    with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        for name in commands:
            send(f"{name}: {_load(results, send) if name == 'load' else COMMANDS[name](results)}")


def _load(results: Path, send: Callable[[str], None]) -> str:
    is_sound = report_command.main(["verify", "--results", str(results)]) == 0
    try:
        runs = load_runs(results / "runs")
        records = {run.manifest.run_id: list(run.records) for run in runs if run.finished}
        for run in runs:
            list(run.exhibits)
    except (ConfigError, OSError):
        return "refused"
    # Verified where it is named so; a run of an older version has nothing that could show an edit.
    if is_sound and any(own != expected(run, 2) for run, own in records.items() if run != "older"):
        send("BELIEVED")
    return "sound" if is_sound else "damage is named by verify"


def whole(folder: Path, number: int, rng: random.Random) -> Tally:
    """Kill processes of the benchmark itself on a tiny random model, then let it finish."""
    tally, results = Tally("whole runs"), folder / "results"
    command = [
        *(
            sys.executable,
            "-m",
            "harness.bench",
            "~experiment",
            "target=tiny",
            "task=smoke",
            "method=[ngram]",
        ),
        *("measure=acceptance", "max_new_tokens=16", "tracker=none", f"results={results}"),
    ]
    shutil.rmtree(results, ignore_errors=True)
    while tally.tried < number:
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            begin = time.monotonic()
            while process.poll() is None and not list((results / "runs").glob("*/journal.jsonl")):
                time.sleep(0.01)
            span_s = rng.uniform(0, max(3.0, 0.3 * (time.monotonic() - begin)))
            with suppress(subprocess.TimeoutExpired):
                process.wait(span_s)
            tally.tried += 1
            tally.how["killed" if process.poll() is None else "ended before"] += 1
            process.send_signal(rng.choice((signal.SIGKILL, signal.SIGTERM)))
        if tally.how["ended before"]:
            shutil.rmtree(results, ignore_errors=True)
            tally.how["ended before"] -= 1
            tally.how["finished"] += 1
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    if ended.returncode:
        tally.fault("tracebacks", f"the last command: {ended.stderr[-500:]}")
    for run in load_runs(results / "runs"):
        places = Counter((one.conversation, one.arm, one.turn, one.sample, one.repeat) for one in run.records)
        conversations = int(run.manifest.prompts["num_conversations"])
        tally.doubled += sum(count - 1 for count in places.values())
        tally.lost += conversations - len({place[0] for place in places})
    tally.survived = tally.tried if tally.is_good else 0
    return tally


def main() -> int:
    """Run the chosen parts."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="where everything is written; its contents are replaced")
    parser.add_argument("--seed", type=int, default=0)
    for name, number in (("kills", 500), ("disks", 50), ("stores", 1000), ("whole", 0)):
        parser.add_argument(f"--{name}", type=int, default=number, metavar="N")
    given = parser.parse_args()
    parts = {"kills": kills, "disks": disks, "stores": stores, "whole": whole}
    tallies = []
    for name, part in parts.items():
        if number := getattr(given, name):
            place = given.folder / name
            place.mkdir(parents=True, exist_ok=True)
            tallies.append(part(place, number, random.Random(f"{given.seed} {name}")))
            tallies[-1].show()
    return 0 if all(tally.is_good for tally in tallies) else 1


if __name__ == "__main__":
    sys.exit(main())
