"""Try a sweep of a hundred cells, interrupted in several ways: python -m scripts.sweep_trial slurm|ray FOLDER

slurm: run `scripts/slurm_loopback.sh start SLURM` first and set its SLURM_CONF. ray: starts a cluster of two
workers. The interruptions are Ctrl-C, kill -9 of a worker, a job put back into the queue, and a killed
scheduler; after each the same command is run again. Prints the state of the store after every step, as JSON
lines. If it is interrupted itself, the same command resumes.
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

from harness.store.locations import RUNS
from harness.store.run_store import load_run
from harness.store.write_lock import last_holder
from harness.sweeps.cell_states import RunIndex

RAY_PORT = 26379
LAUNCHERS = {
    "slurm": ["hydra.launcher.gpus_per_task=null", "hydra.launcher.cpus_per_task=1"],
    "ray": [f"hydra.launcher.init.address=127.0.0.1:{RAY_PORT}", "hydra.launcher.remote.num_gpus=0"],
}
NUM_JOBS = 50
"""Each job has two cells, greedy and sampled."""
NUM_PROMPTS = 8


class Trial:
    """One sweep, whose command is run again and again."""

    def __init__(self, launcher: str, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        prompts, self.results = folder / "prompts.jsonl", folder / "results"
        texts = [f"one two {number} one two" for number in range(NUM_PROMPTS)]
        lines = [{"question_id": i, "category": "a", "turns": [text]} for i, text in enumerate(texts)]
        prompts.write_text("\n".join(map(json.dumps, lines)))
        sweep = f"methods.ngram.draft_length={','.join(map(str, range(1, NUM_JOBS // 2 + 1)))}"
        self._command = [
            *(sys.executable, "-m", "harness.bench", "--multirun", f"hydra/launcher={launcher}"),
            *(*LAUNCHERS[launcher], "~experiment"),
            *("target=tiny", "task=local", f"task.path={prompts}", "method=[ngram]", "measure=acceptance"),
            *("measure.batch_size=1", "max_new_tokens=32,33", "decoding=[greedy,sampled]", "tracker=none"),
            *(f"results={self.results}", sweep),
        ]
        self._log, self._begin = folder / "log", time.monotonic()

    def type(self, until: int = 0, act: Callable[[subprocess.Popen[str]], str] | None = None) -> None:
        """Run the command; once `until` cells are done, interrupt it."""
        seen = self._log.stat().st_size if self._log.exists() else 0
        with self._log.open("a") as log:
            process = subprocess.Popen(self._command, stdout=subprocess.PIPE, stderr=log, text=True)
            while act and process.poll() is None:
                if self.num("done") >= until and self.num("running"):
                    self.tell(act(process))
                    break
                time.sleep(0.2)
            out, _ = process.communicate()
        document = json.loads(out.splitlines()[-1]) if out else {"run_dirs": []}
        printed = self._log.read_text()[seen:].splitlines()
        self.tell(
            "ended",
            status=process.returncode,
            run_dirs=len(document["run_dirs"]),
            failed_rows=sum("FAILED" in line for line in printed),
        )

    def num(self, state: str) -> int:
        """The number of cells in a state."""
        return sum(one.state == state for one in RunIndex(self.results / RUNS).runs)

    def running(self) -> list[Path]:
        """The run folders that are being written."""
        return [one.folder for one in RunIndex(self.results / RUNS).runs if one.state == "running"]

    def tell(self, what: str, **more: Any) -> None:
        """Print the state of the store as one line."""
        found = RunIndex(self.results / RUNS).runs
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
    """Interrupt the command as Ctrl-C does."""
    process.send_signal(signal.SIGINT)
    return "Ctrl-C"


def kill(trial: Trial) -> str:
    """Kill (-9) a process that writes a run."""
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


class RayCluster:
    """A Ray cluster on this machine: a head without processors and two workers with one processor each."""

    def __init__(self) -> None:
        self.start()

    def start(self) -> None:
        """Start the cluster at the port that the command uses."""
        from ray.cluster_utils import Cluster

        self._cluster = Cluster(
            initialize_head=True, head_node_args={"num_cpus": 0, "gcs_server_port": RAY_PORT}
        )
        for _ in range(2):
            self._cluster.add_node(num_cpus=1)

    def reboot(self) -> str:
        """Kill the whole cluster and start it again."""
        self._cluster.shutdown()
        self.start()
        return "the whole Ray cluster was shut down, and started again"

    def stop(self) -> None:
        """Stop the cluster."""
        self._cluster.shutdown()


def main(launcher: str, folder: Path) -> None:
    """Interrupt the sweep in every way and resume it until all cells are done."""
    # Background processes of a shell ignore Ctrl-C, and their children inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    trial = Trial(launcher, folder)
    cluster = RayCluster() if launcher == "ray" else None

    def slurm(_: subprocess.Popen[str]) -> str:
        for act in (lambda: kill(trial), slurm_requeue, slurm_reboot):
            trial.tell(act())
            time.sleep(10)
        return "ten seconds later"

    ways: list[tuple[int, Callable[[subprocess.Popen[str]], str]]] = [(15, interrupt), (30, slurm)]
    if cluster:
        ways[1:] = [(30, lambda _: kill(trial)), (60, lambda _: cluster.reboot())]
    for until, act in ways:
        if trial.num("done") < until:
            trial.type(until, act)
    trial.type()
    trial.type()
    if cluster:
        cluster.stop()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
