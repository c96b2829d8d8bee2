"""Grid: what a command would measure, what of it is done already, and about what the rest costs."""

from __future__ import annotations

from itertools import count
from typing import Any

from omegaconf import DictConfig

from harness.benchmark.estimate import Estimator
from harness.benchmark.experiment import make_cell
from harness.benchmark.plan import Plan, make_plan
from harness.config import ConfigError
from harness.decoding.sampling import DecodingParams
from harness.store.identity import identity, stored_identity
from harness.store.records import Run
from harness.store.run_store import load_runs
from harness.system.console import duration
from harness.system.naming import digest
from harness.system.provenance import device_facts

_HEADERS = ["target", "task", "T", "batch", "profile", "methods", "state", "generations", "time", "memory"]


class Survey:
    """The cells of one composed configuration; measures nothing. `run` and `outcome` are as those of a job.

    A cell is found in the store by its configuration, source, packages and device: that prompts, weights and
    heads still hold what they held is taken on trust, and looked at when it is measured.
    """

    interrupted = False

    def __init__(self, config: DictConfig, overrides: list[str]) -> None:
        self._config, self._overrides = config, overrides
        self._cells: list[dict[str, Any]] = []
        self._errors: list[str] = []
        self._status = 0

    def outcome(self) -> dict[str, Any]:
        """For the aggregate; JSON types."""
        return {"run_dirs": [], "errors": self._errors, "status": self._status, "cells": self._cells}

    def run(self, sweeping: bool) -> None:
        """Look at every cell; in a sweep the others go on after one whose configuration is wrong."""
        try:
            plan = make_plan(self._config, self._overrides)
            plan.acceptor.load()
            self._cells = survey(plan)
        except ConfigError as error:
            told = f"{' '.join(self._overrides)}: {error}" if sweeping else str(error)
            self._errors, self._status = [told], 1 if sweeping else 2


def survey(plan: Plan) -> list[dict[str, Any]]:
    """A cell for each decoding, as JSON types.

    state: done, partly done or missing. num_generations, num_done: of all arms and rungs. run_dir: where it
    lies, None for a cell that is missing. seconds, memory_bytes, basis: see `Estimate`, of what is left.

    Raises:
        ConfigError: the prompts cannot be read, or a stored run cannot.
    """
    root = plan.results / "runs"
    runs = load_runs(root) if root.is_dir() else []
    device = device_facts(plan.target.resolved_device())
    turns = {one.id: one.num_turns for one in plan.task.load()}
    estimator = Estimator(plan, runs, device)
    found = []
    for params in plan.decodings.values():
        run = _stored(plan, params, runs, device)
        done = {record.conversation for record in run.records} if run else set()
        left = sum(num for name, num in turns.items() if name not in done)
        often = len(params.seeds) * sum(plan.repeats(params).values())
        state = "done" if run and run.finished else "partly done" if done else "missing"
        estimate = estimator.of(params, left)
        found.append(
            {
                **vars(make_cell(plan, params)),
                "methods": list(plan.arms),
                "rungs": [name for name in plan.repeats(params) if name not in plan.arms],
                "state": state,
                "run_dir": run.folder if run else None,
                "num_generations": sum(turns.values()) * often,
                "num_done": (sum(turns.values()) - left) * often,
                "seconds": 0.0 if state == "done" else estimate.seconds,
                "memory_bytes": estimate.memory_bytes,
                "basis": estimate.basis,
            }
        )
    return found


def _stored(plan: Plan, params: DecodingParams, runs: list[Run], device: dict[str, Any]) -> Run | None:
    """The run of this cell, finished or not; of `replicate=next` the first replicate that is not finished."""
    theirs = {digest(stored_identity(run.manifest)): run for run in runs}

    def of(replicate: int) -> Run | None:
        return theirs.get(digest(identity(plan.run_config(params), replicate, device)))

    if plan.replicate != "next":
        return of(plan.replicate)
    return next(run for run in map(of, count()) if run is None or not run.finished)


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
    """What the table leaves out: the sums, and what each estimate is concluded from."""
    states = [cell["state"] for cell in cells]
    told = ", ".join(f"{states.count(name)} {name}" for name in dict.fromkeys(states))
    known = [cell["seconds"] for cell in cells if cell["seconds"] is not None]
    unknown = len(cells) - len(known)
    rest = f", and {unknown} whose time is not known" if unknown else ""
    lines = [
        f"{len(cells)} cells: {told}; about {duration(sum(known))} left{rest}. Loading, warm-up, probes and"
        " verdicts come on top; nothing was measured."
    ]
    for basis in dict.fromkeys(cell["basis"] for cell in cells if cell["state"] != "done"):
        which = [f"{c['target']}, {c['task']}, T={c['temperature']:g}" for c in cells if c["basis"] == basis]
        lines.append(f"{which[0]}{f' and {len(which) - 1} more' if which[1:] else ''}: {basis}")
    return lines


def size(num_bytes: int | None) -> str:
    """In GB; `-` where it is not known."""
    return "-" if num_bytes is None else f"{num_bytes / 1e9:.1f} GB"
