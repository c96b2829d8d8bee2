"""States of the cells of a sweep, read from the run folders of any number of machines.

The measuring processes are not contacted, and of a finished journal only the first and last lines are read.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, Literal, NamedTuple

from omegaconf import DictConfig, OmegaConf

from harness.config import with_parts
from harness.store.identity import identity, run_config, stored_identity
from harness.store.journal import JOURNAL, read_journal, seconds_of
from harness.store.locations import run_folders
from harness.store.records import RunManifest
from harness.store.run_store import MANIFEST, read_manifest
from harness.store.write_lock import holder, last_holder
from harness.system.naming import class_names, digest
from harness.system.secrets import redact

State = Literal["done", "running", "failed", "missing"]


class RequestedCell(NamedTuple):
    """A cell that a sweep requests."""

    target: str
    task: str
    decoding: str
    overrides: list[str]
    """Overrides of the job that measures it."""
    replicate: int | str
    config: dict[str, Any]
    """Its configuration as the manifest of its run holds it."""


class RunState(NamedTuple):
    """A run folder and the state it is in."""

    folder: Path
    manifest: RunManifest
    state: State
    share: float = 1.0
    """Share of its prompts that are done."""
    seconds: float | None = None
    """Seconds from its start to its end; None unless done."""
    who: str = ""
    """Description of the process that is writing it."""
    reasons: tuple[str, ...] = ()
    """Reasons why it failed."""


def requested_cells(config: DictConfig, overrides: Sequence[str]) -> list[RequestedCell]:
    """The cells that one composed configuration requests.

    Raises:
        ConfigError: a method has a tree or a policy that does not exist.
    """
    whole: Any = OmegaConf.to_container(config, resolve=True, throw_on_missing=False)
    whole["methods"] = with_parts(whole["methods"], "methods")
    return [
        RequestedCell(
            target=str(whole["target"]["name"]),
            task=str(whole["task"]["name"]),
            decoding=str(decoding),
            overrides=list(overrides),
            replicate=whole["replicate"],
            config=run_config(whole, decoding),
        )
        for decoding in whole["decodings"] or {}
    ]


class RunIndex:
    """The run folders below `root` at one moment, indexed by the cells that they belong to."""

    def __init__(self, root: Path) -> None:
        """Read the state of every run.

        Raises:
            ConfigError: a run cannot be read.
        """
        folders = run_folders(root).values() if root.is_dir() else ()
        self.runs = [read_state(folder) for folder in folders if (folder / MANIFEST).exists()]
        self._by_config: dict[str, list[RunState]] = {}
        self._by_overrides: dict[str, list[RunState]] = {}
        for run in self.runs:
            manifest, cell = run.manifest, run.manifest.cell
            self._by_config.setdefault(_config_key(stored_identity(manifest)), []).append(run)
            key = _overrides_key(cell.target, cell.task, cell.decoding, manifest.overrides)
            self._by_overrides.setdefault(key, []).append(run)
        self._here = identity({}, 0, {})

    def find(self, cell: RequestedCell, begun: str = "") -> RunState | None:
        """The run of a cell on any machine, or the record of why it could not start; None if there is none.

        begun: time at which the sweep was first started (ISO 8601). With `replicate=next`, an older finished
        run belongs to another measurement.
        """
        config = class_names(redact(cell.config))
        runs = self._by_config.get(_config_key({**self._here, "config": config}), [])
        key = _overrides_key(cell.target, cell.task, cell.decoding, redact(cell.overrides))
        alike = self._by_overrides.get(key, [])
        if any("${" in override for override in cell.overrides):
            # The values that these interpolations had are unknown here, so what was typed is compared.
            runs = [*runs, *(run for run in alike if run not in runs and self._is_from_here(run.manifest))]
        if cell.replicate == "next":
            runs = [run for run in runs if run.state != "done" or run.manifest.created >= begun]
        else:
            runs = [run for run in runs if run.manifest.replicate == cell.replicate]
        unable = [run for run in alike if not run.manifest.arms]
        order = ("running", "done", "failed")
        return min(runs or unable, key=lambda run: order.index(run.state), default=None)

    def _is_from_here(self, manifest: RunManifest) -> bool:
        """Whether a run was measured by the code and the packages of this process."""
        facts = stored_identity(manifest)
        same = ("source", "packages")
        return bool(manifest.arms) and all(facts[name] == self._here[name] for name in same)


def read_state(folder: Path) -> RunState:
    """The state of the run in `folder`.

    Raises:
        ConfigError: the folder holds no run, or a damaged one.
    """
    manifest = read_manifest(folder / MANIFEST)
    if (spent := seconds_of(folder / JOURNAL, manifest)) is not None:
        return RunState(folder, manifest, "done", seconds=spent)
    journal = read_journal(folder / JOURNAL, manifest)
    prompts = {record.conversation for record in journal.records()}
    share = len(prompts) / max(int(manifest.prompts.get("num_conversations", 0)), 1)
    if who := holder(folder):
        return RunState(folder, manifest, "running", share, who=f"process {who.pid} on {who.host}")
    reasons = [f"{failure.kind}: {failure.message}" for failure in journal.failures()]
    if not reasons:
        who = last_holder(folder)
        whose = f"its process ({who.pid} on {who.host})" if who else "its process"
        reasons = [f"{whose} is gone without an error: it was killed, or its machine went down"]
    return RunState(folder, manifest, "failed", share, reasons=tuple(dict.fromkeys(reasons)))


def cell_status(cell: RequestedCell, run: RunState | None) -> dict[str, Any]:
    """A cell and the state of its run, as JSON types with the meaning of the fields of `RunState`."""
    return {
        "target": cell.target,
        "task": cell.task,
        "decoding": cell.decoding,
        "overrides": redact(cell.overrides),
        "state": run.state if run else "missing",
        "share": run.share if run else 0.0,
        "seconds": run.seconds if run else None,
        "who": run.who if run else "",
        "reasons": list(run.reasons) if run else [],
        "run_dir": str(run.folder) if run else None,
    }


def seconds_left(cells: Sequence[Mapping[str, Any]]) -> float | None:
    """Estimated seconds until the sweep is done, if as many cells run at a time as now (at least one).

    A cell is expected to take the mean of the done cells of its target and task, or else of its target, or
    else of all. None if no cell is done but some are left.

    cells: as `cell_status` gives them.
    """
    done = [cell for cell in cells if cell["seconds"] is not None]
    todo = [cell for cell in cells if cell["state"] != "done"]
    if not done:
        return None if todo else 0.0
    total = 0.0
    for cell in todo:
        alike = [one for one in done if one["target"] == cell["target"]]
        closest = [one for one in alike if one["task"] == cell["task"]] or alike or done
        total += fmean(one["seconds"] for one in closest) * (1 - float(cell["share"]))
    num_running: int = sum(cell["state"] == "running" for cell in cells)
    return float(total) / max(1, num_running)


def _config_key(facts: Mapping[str, Any]) -> str:
    """A run's identity without device and replicate, because a sweep's status is read on any machine."""
    config = dict(facts["config"])
    config["acceptor"] = {
        key: value for key, value in (config.get("acceptor") or {}).items() if key != "card"
    }
    return digest([config, facts["source"], facts["packages"]])


def _overrides_key(target: str, task: str, decoding: str, overrides: Iterable[str]) -> str:
    """The key of a run by what was typed: one that could not start has no identity yet."""
    # Hydra escapes the signs of an interpolation where it lists the overrides of a job.
    return digest([target, task, decoding, sorted(override.replace("\\", "") for override in overrides)])
