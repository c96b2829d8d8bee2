"""Progress: what became of the cells of a grid, from the run folders of any number of machines.

Nothing is asked of the processes that measure, and nothing but the ends of a finished journal is read.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from statistics import fmean
from typing import Any, Literal, NamedTuple

from omegaconf import DictConfig, OmegaConf

from harness.store.identity import identity, run_config, stored_identity
from harness.store.journal import JOURNAL, read_ends, read_journal
from harness.store.locations import run_folders
from harness.store.records import Cell, RunManifest
from harness.store.run_store import MANIFEST, read_manifest
from harness.store.write_lock import holder, last_holder
from harness.system.naming import class_names, digest, redact

State = Literal["done", "running", "failed", "missing"]


class Asked(NamedTuple):
    """A cell that a grid asks for. overrides: of its job. config: as the manifest of its run has it."""

    target: str
    task: str
    decoding: str
    overrides: list[str]
    replicate: int | str
    config: dict[str, Any]


class Found(NamedTuple):
    """What a run folder tells. share: of its prompts that are done. seconds: from its beginning to its end.

    who: the process that writes it, in words. reasons: why it failed.
    """

    folder: Path
    manifest: RunManifest
    state: State
    share: float = 1.0
    seconds: float | None = None
    who: str = ""
    reasons: tuple[str, ...] = ()


def asked(config: DictConfig, overrides: Sequence[str]) -> list[Asked]:
    """The cells of one composed configuration."""
    whole: Any = OmegaConf.to_container(config, resolve=True, throw_on_missing=False)
    return [
        Asked(
            target=str(whole["target"]["name"]),
            task=str(whole["task"]["name"]),
            decoding=str(decoding),
            overrides=list(overrides),
            replicate=whole["replicate"],
            config=run_config(whole, decoding),
        )
        for decoding in whole["decodings"] or {}
    ]


class Shelf:
    """The run folders below `root` as they are now."""

    def __init__(self, root: Path) -> None:
        """Look at all of them.

        Raises:
            ConfigError: one cannot be read.
        """
        folders = run_folders(root).values() if root.is_dir() else ()
        self.found = [look(folder) for folder in folders if (folder / MANIFEST).exists()]
        self._by_config: dict[str, list[Found]] = {}
        self._by_overrides: dict[str, list[Found]] = {}
        for one in self.found:
            manifest = one.manifest
            self._by_config.setdefault(_key(stored_identity(manifest)), []).append(one)
            place = _place(manifest.cell, manifest.overrides)
            if not manifest.arms:
                self._by_overrides.setdefault(place, []).append(one)
        self._here = identity({}, 0, {})

    def find(self, cell: Asked, begun: str = "") -> Found | None:
        """The run of a cell, wherever it was measured, or why it could not begin; None: nothing is there.

        begun: when the grid was first asked for (ISO 8601). With `replicate=next` a finished run that is
        older is another measurement.
        """
        runs = self._by_config.get(_key({**self._here, "config": class_names(redact(cell.config))}), [])
        if cell.replicate == "next":
            runs = [run for run in runs if run.state != "done" or run.manifest.created >= begun]
        else:
            runs = [run for run in runs if run.manifest.replicate == cell.replicate]
        unable = self._by_overrides.get(_place(cell, redact(cell.overrides)), [])
        order = ("running", "done", "failed")
        return min(runs or unable, key=lambda run: order.index(run.state), default=None)


def look(folder: Path) -> Found:
    """What one run folder tells.

    Raises:
        ConfigError: it holds something else, or not what was written.
    """
    manifest = read_manifest(folder / MANIFEST)
    first, last = read_ends(folder / JOURNAL)
    if last.get("kind") == "finished":
        spent = _moment(last["data"]["at"]) - _moment(first["data"]["at"])
        return Found(folder, manifest, "done", seconds=spent)
    journal = read_journal(folder / JOURNAL)
    prompts = {record.conversation for record in journal.records()}
    share = len(prompts) / max(int(manifest.prompts.get("num_conversations", 0)), 1)
    if who := holder(folder):
        return Found(folder, manifest, "running", share, who=f"process {who.pid} on {who.host}")
    reasons = [f"{failure.kind}: {failure.message}" for failure in journal.failures()]
    if not reasons:
        who = last_holder(folder)
        whose = f"its process ({who.pid} on {who.host})" if who else "its process"
        reasons = [f"{whose} is gone without a word: killed, or its machine went down"]
    return Found(folder, manifest, "failed", share, reasons=tuple(dict.fromkeys(reasons)))


def told(cell: Asked, found: Found | None) -> dict[str, Any]:
    """A cell and its state as JSON types. share: of its prompts that are done; seconds: None unless done."""
    return {
        "target": cell.target,
        "task": cell.task,
        "decoding": cell.decoding,
        "overrides": redact(cell.overrides),
        "state": found.state if found else "missing",
        "share": found.share if found else 0.0,
        "seconds": found.seconds if found else None,
        "who": found.who if found else "",
        "reasons": list(found.reasons) if found else [],
        "run_dir": str(found.folder) if found else None,
    }


def seconds_left(cells: Sequence[Mapping[str, Any]]) -> float | None:
    """Until the grid is done at the present number of running cells (at least one); None: nothing is known.

    A cell takes what those of its target and task took that are done, else its target's, else any.
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


def _key(one: Mapping[str, Any]) -> str:
    """Of an identity, all but the device and the replicate: a grid is looked at from any machine."""
    config = dict(one["config"])
    config["acceptor"] = {
        key: value for key, value in (config.get("acceptor") or {}).items() if key != "card"
    }
    return digest([config, one["source"], one["packages"]])


def _place(cell: Cell | Asked, overrides: Iterable[str]) -> str:
    return digest([cell.target, cell.task, cell.decoding, sorted(overrides)])


def _moment(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()
