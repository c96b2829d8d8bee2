"""What a command would measure, what of it is done already, and about how long the rest takes."""

from __future__ import annotations

from itertools import count
from typing import Any

from omegaconf import DictConfig

from harness.benchmark.dry_run.estimate import Estimator
from harness.benchmark.plan import Plan, make_cell, make_plan
from harness.config import ConfigError
from harness.decoding.sampling import DecodingParams
from harness.store.identity import identity, stored_identity
from harness.store.locations import RUNS
from harness.store.records import Run
from harness.store.run_store import load_runs
from harness.system.console import duration
from harness.system.naming import digest

_HEADERS = ["target", "task", "T", "batch", "profile", "methods", "state", "generations", "time", "memory"]


class Survey:
    """The cells of one composed configuration; measures nothing. `run` and `outcome` are like those of a job.

    A cell is found in the store by its configuration, source, packages and device. That prompts, weights and
    heads have not changed since is assumed here, and checked when the cell is measured.
    """

    interrupted = False

    def __init__(self, config: DictConfig, overrides: list[str]) -> None:
        self._config, self._overrides = config, overrides
        self._cells: list[dict[str, Any]] = []
        self._errors: list[str] = []
        self._status = 0

    def outcome(self) -> dict[str, Any]:
        """What the command's last line is made from; JSON types."""
        return {"run_dirs": [], "errors": self._errors, "status": self._status, "cells": self._cells}

    def run(self, sweeping: bool) -> None:
        """Look at every cell. sweeping: whether other jobs follow, which this one's errors do not stop."""
        try:
            plan = make_plan(self._config, self._overrides)
            plan.acceptor.load()
            self._cells = survey(plan)
        except ConfigError as error:
            text = f"{' '.join(self._overrides)}: {error}" if sweeping else str(error)
            self._errors, self._status = [text], 1 if sweeping else 2


def survey(plan: Plan) -> list[dict[str, Any]]:
    """A cell for each decoding, as JSON types: the fields of `Cell`, and what follows.

    methods, rungs: names. state: done, partly done or missing. run_dir: the folder of the run, None for a
    missing cell. num_generations, num_done: over all arms and rungs. seconds, memory_bytes, basis: the
    `Estimate` for what is left.

    Raises:
        ConfigError: the prompts cannot be read, or a stored run cannot.
    """
    root = plan.results / RUNS
    runs = load_runs(root) if root.is_dir() else []
    device = plan.engine.device_facts(plan.target)
    calls = {one.id: plan.scenario.num_calls(one) for one in plan.task.load()}
    estimator = Estimator(plan, runs, device)
    cells = []
    for params in plan.decodings.values():
        run = _stored(plan, params, runs, device)
        done = {record.conversation for record in run.records} if run else set()
        left = sum(num for name, num in calls.items() if name not in done)
        num_passes = len(params.seeds) * sum(plan.repeats(params).values())
        state = "done" if run and run.finished else "partly done" if done else "missing"
        estimate = estimator.estimate(params, left)
        cells.append(
            {
                **vars(make_cell(plan, params)),
                "methods": list(plan.arms),
                "rungs": [name for name in plan.repeats(params) if name not in plan.arms],
                "state": state,
                "run_dir": run.folder if run else None,
                "num_generations": sum(calls.values()) * num_passes,
                "num_done": (sum(calls.values()) - left) * num_passes,
                "seconds": 0.0 if state == "done" else estimate.seconds,
                "memory_bytes": estimate.memory_bytes,
                "basis": estimate.basis,
            }
        )
    return cells


def _stored(plan: Plan, params: DecodingParams, runs: list[Run], device: dict[str, Any]) -> Run | None:
    """The run of this cell, finished or not; for `replicate=next` the first that is not finished."""
    stored = {digest(stored_identity(run.manifest)): run for run in runs}

    def find(replicate: int) -> Run | None:
        return stored.get(digest(identity(plan.run_config(params), replicate, device)))

    if plan.replicate != "next":
        return find(plan.replicate)
    return next(run for run in map(find, count()) if run is None or not run.finished)


def table(cells: list[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Headers and cells for the console."""
    body = [
        [
            cell["target"],
            cell["task"],
            f"{cell['temperature']:g}",
            str(cell["batch_size"]),
            cell["profile"],
            ", ".join([*cell["methods"], *cell["rungs"]]),
            cell["state"],
            f"{cell['num_done']} of {cell['num_generations']}",
            duration(cell["seconds"]),
            size(cell["memory_bytes"]),
        ]
        for cell in cells
    ]
    return _HEADERS, body


def notes(cells: list[dict[str, Any]]) -> list[str]:
    """Lines below the table: the sums, and the basis of each estimate."""
    states = [cell["state"] for cell in cells]
    summary = ", ".join(f"{states.count(name)} {name}" for name in dict.fromkeys(states))
    known = [cell["seconds"] for cell in cells if cell["seconds"] is not None]
    unknown = len(cells) - len(known)
    rest = f", and {unknown} whose time is not known" if unknown else ""
    lines = [
        f"{len(cells)} cells: {summary}; about {duration(sum(known))} left{rest}. Loading, warm-up, probes"
        " and verdicts come on top; nothing was measured."
    ]
    for basis in dict.fromkeys(cell["basis"] for cell in cells if cell["state"] != "done"):
        which = [f"{c['target']}, {c['task']}, T={c['temperature']:g}" for c in cells if c["basis"] == basis]
        lines.append(f"{which[0]}{f' and {len(which) - 1} more' if which[1:] else ''}: {basis}")
    return lines


def size(num_bytes: int | None) -> str:
    """A number of bytes in GB; `-` where it is not known."""
    return "-" if num_bytes is None else f"{num_bytes / 1e9:.1f} GB"
