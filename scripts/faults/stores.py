"""Stores that are damaged at random and then read by every command."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout, suppress
from functools import partial
from io import StringIO
from pathlib import Path

from harness.cli import report_command
from harness.config import ConfigError
from harness.store.locations import RUNS
from harness.store.run_store import load_runs
from harness.sweeps.cell_states import RunIndex
from scripts.faults import child, damage
from scripts.faults.child import Send
from scripts.faults.made_up import OLDER, expected, expected_loads, write_run, write_store
from scripts.faults.tally import Tally

_BELIEVED = "BELIEVED"


def stores(folder: Path, number: int, rng: random.Random) -> Tally:
    """Damage `number` stores in one to three ways each, and have each read by three commands."""
    tally, base, store = Tally("stores"), folder / "base", folder / "store"
    shutil.rmtree(base, ignore_errors=True)
    child.run_to_end(tally, lambda _: write_store(base), "writing the sound store")
    while tally.tried < number:
        _copy_some(base, store, rng)
        names = {path.name for path in store.iterdir()}
        damages = [damage.apply(store / "results" / RUNS, rng) for _ in range(rng.choice((1, 1, 2, 3)))]
        tally.how.update(one.name for one in damages)
        if all(one.name == damage.NONE for one in damages):
            continue
        commands = ["load", *rng.sample(sorted(_COMMANDS), 2)]
        where = f"store {tally.tried}: {'; '.join(map(str, damages))}; then {', '.join(commands)}"
        before = tally.num_faults
        lines = child.run_to_end(tally, partial(_examine, store / "results", commands), where)
        if (store / "outside").read_text() != "mine" or {path.name for path in store.iterdir()} != names:
            tally.fault("unnoticed", f"{where}: something outside was written")
        if _BELIEVED in lines and not any(one.forged for one in damages):
            tally.fault("unnoticed", f"{where}: read as sound, but not what was written")
        tally.tried += 1
        tally.how.update(line for line in lines if line.startswith("load: "))
        tally.survived += before == tally.num_faults
    return tally


def _copy_some(base: Path, store: Path, rng: random.Random) -> None:
    """Copy some runs of a store: of several, one that is refused would hide what the others do."""
    shutil.rmtree(store, ignore_errors=True)
    shutil.copytree(base, store / "results")
    (store / "outside").write_text("mine")
    runs = sorted((store / "results" / RUNS).glob("[!.]*"))
    for path in rng.sample(runs, rng.randrange(len(runs))):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def _build(results: Path) -> int:
    """Every format of the report except figures, which take longest and read nothing of the store."""
    arguments = ["--results", str(results), "--out", str(results / "out")]
    return report_command.main(["build", *arguments, "--format", "md", "tex", "csv", "html", "--allow-mixed"])


def _resume(results: Path) -> int:
    """Open every run for writing, as a command that is typed again."""
    for run in ("a", "open", OLDER):
        with suppress(ConfigError, OSError):
            write_run(results / RUNS, run, num_blocks=2)
    return 0


def _status(results: Path) -> int:
    """Read the states of all runs, as `harness.sweep status` does."""
    with suppress(ConfigError, OSError):
        RunIndex(results / RUNS)
    return 0


def _typed(*words: str) -> Callable[[Path], int]:
    return lambda results: report_command.main([*words, "--results", str(results)])


_COMMANDS: dict[str, Callable[[Path], int]] = {
    "build": _build,
    "verify": _typed("verify"),
    "compact": _typed("compact"),
    "expand": _typed("expand"),
    "migrate": _typed("migrate"),
    "diff": _typed("diff", "a", "b"),
    "replay": _typed("replay", "--length", "2"),
    "resume": _resume,
    "status": _status,
}


def _examine(results: Path, commands: list[str], send: Send) -> None:
    """Run commands on a damaged store, and send whether it was believed in spite of its damage."""
    with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        for name in commands:
            send(f"{name}: {_load(results, send) if name == 'load' else _COMMANDS[name](results)}")


def _load(results: Path, send: Send) -> str:
    is_sound = report_command.main(["verify", "--results", str(results)]) == 0
    try:
        found = []
        for run in load_runs(results / RUNS):
            found.append((run, list(run.records)))
            list(run.exhibits)
    except (ConfigError, OSError):
        return "refused"
    # Verified where it is named so; a run of an older version has nothing that could show an edit.
    whole = [one for one in found if one[0].finished and one[0].manifest.run_id != OLDER]
    if is_sound and any(
        records != expected(run.manifest.run_id, 2) or run.loads != expected_loads(2)
        for run, records in whole
    ):
        send(_BELIEVED)
    return "sound" if is_sound else "damage is named by verify"
