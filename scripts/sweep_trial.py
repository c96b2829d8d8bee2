"""A sweep of a hundred cells, interrupted in every way: python -m scripts.sweep_trial slurm|ray FOLDER

slurm: after `scripts/slurm_loopback.sh start SLURM`, with its SLURM_CONF set. ray: after
`python -m scripts.ray_loopback start`. Ctrl-C, kill -9 of a worker, a job put back into the queue, the
scheduler killed and started again; then the same command. Prints what the store holds at every turn, as JSON
lines.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from harness.lease import last_holder
from harness.progress import Shelf
from harness.store import load_run

LAUNCHERS = {
    "slurm": ["hydra/launcher=slurm", "hydra.launcher.gpus_per_task=null", "hydra.launcher.cpus_per_task=1"],
    "ray": ["hydra/launcher=ray", "hydra.launcher.init.address=auto", "hydra.launcher.remote.num_gpus=0"],
}
NUM_JOBS = 50
"""Two cells each, greedy and sampled."""
NUM_PROMPTS = 8


class Trial:
    """One sweep, typed again and again."""

    def __init__(self, launcher: str, folder: Path) -> None:
        folder.mkdir(parents=True)
        prompts, self.results = folder / "prompts.jsonl", folder / "results"
        lines = [
            {"question_id": i, "category": "a", "turns": [f"one two {i} one"]} for i in range(NUM_PROMPTS)
        ]
        prompts.write_text("\n".join(map(json.dumps, lines)))
        sweep = f"methods.ngram.draft_length={','.join(map(str, range(1, NUM_JOBS // 2 + 1)))}"
        self._command = [
            *(sys.executable, "-m", "harness.bench", "--multirun", *LAUNCHERS[launcher], "~experiment"),
            *("target=tiny", "task=local", f"task.path={prompts}", "method=[ngram]", "measure=acceptance"),
            *("measure.batch_size=1", "max_new_tokens=32,33", "decoding=[greedy,sampled]", "tracker=none"),
            *(f"results={self.results}", sweep),
        ]
        self._log, self._begin = folder / "log", time.monotonic()

    def type(
        self, until: int | None = None, act: Callable[[subprocess.Popen[str]], str] | None = None
    ) -> None:
        """Type the command; when `until` cells are done, do something to it."""
        with self._log.open("a") as log:
            process = subprocess.Popen(self._command, stdout=subprocess.PIPE, stderr=log, text=True)
            while act and process.poll() is None:
                if self.num("done") >= until and self.num("running"):
                    self.tell(act(process))
                    break
                time.sleep(0.2)
            out, _ = process.communicate()
        document = json.loads(out) if out else {"rows": [], "run_dirs": []}
        told = self._log.read_text()[seen:].splitlines()
        self.tell(
            "ended",
            status=process.returncode,
            run_dirs=len(document["run_dirs"]),
            failed_rows=sum("FAILED" in line for line in told),
        )

    def num(self, state: str) -> int:
        """Cells in a state."""
        return sum(one.state == state for one in Shelf(self.results / "runs").found)

    def running(self) -> list[Path]:
        """Folders that are being written."""
        return [one.folder for one in Shelf(self.results / "runs").found if one.state == "running"]

    def tell(self, what: str, **more: Any) -> None:
        """A line of what the store holds."""
        found = Shelf(self.results / "runs").found
        runs = [load_run(one.folder) for one in found]
        keys = Counter(
            (run.manifest.run_id, one.arm, one.conversation, one.sample, one.repeat)
            for run in runs
            for one in run.records
        )
        failures = {f"{one.kind}: {one.message}"[:150] for run in runs for one in run.failures}
        line = {
            "at_s": round(time.monotonic() - self._begin),
            "what": what,
            "cells": dict(Counter(one.state for one in found)),
            "records": keys.total(),
            "double": sum(number > 1 for number in keys.values()),
            "failures": sorted(failures),
            **more,
        }
        print(json.dumps(line), flush=True)


def interrupt(process: subprocess.Popen[str]) -> str:
    """Ctrl-C."""
    process.send_signal(signal.SIGINT)
    return "Ctrl-C"


def kill(trial: Trial) -> str:
    """kill -9 of a process that writes a run."""
    while True:
        for folder in trial.running():
            holder = last_holder(folder)
            if holder and psutil.pid_exists(holder.pid):
                os.kill(holder.pid, signal.SIGKILL)
                return f"kill -9 of the worker of {folder.name}"


def slurm_requeue() -> str:
    """Put a running job back into the queue."""
    squeue = ["squeue", "-h", "-t", "R", "-o", "%i"]
    jobs = subprocess.run(squeue, capture_output=True, text=True, check=True).stdout.split()
    subprocess.run(["scontrol", "requeue", jobs[-1]], check=True)
    return f"scontrol requeue {jobs[-1]}"


def slurm_reboot() -> str:
    """Kill the scheduler and start it again."""
    script = str(Path(__file__).with_name("slurm_loopback.sh"))
    subprocess.run([script, "reboot", str(Path(os.environ["SLURM_CONF"]).parent)], check=True)
    return "kill -9 of slurmctld, and its start"


def ray_reboot() -> str:
    """Kill the cluster and start it again."""
    for what in ("stop", "start"):
        subprocess.run([sys.executable, "-m", "scripts.ray_loopback", what], check=True, capture_output=True)
    return "kill -9 of the whole Ray cluster, and its start"


def main(launcher: str, folder: Path) -> None:
    """Interrupt, and go on until all is done."""
    trial = Trial(launcher, folder)

    def slurm(_: subprocess.Popen[str]) -> str:
        for act in (lambda: kill(trial), slurm_requeue, slurm_reboot):
            trial.tell(act())
            time.sleep(10)
        return "ten seconds later"

    trial.type(15, interrupt)
    if launcher == "slurm":
        trial.type(30, slurm)
    else:
        trial.type(30, lambda _: kill(trial))
        trial.type(60, lambda _: ray_reboot())
    trial.type()
    trial.type()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
