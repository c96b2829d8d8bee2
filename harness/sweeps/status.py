"""Sweeping: which cells a sweep asked for, told from the folder that Hydra made for it, and how it goes."""

from __future__ import annotations

import json
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_module
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

import conf
from harness.config import ConfigError
from harness.sweeps.cell_states import Asked, Shelf, asked, seconds_left, told
from harness.system.console import Console, duration
from harness.system.naming import digest
from harness.system.provenance import configuration_hash, source_hash

JOBS, SWEEP, CELLS = "jobs", "multirun.yaml", "cells.json"
"""Where Hydra's folders are, what it leaves in that of a sweep, and the composed cells, kept beside it."""
_STATES = ("done", "running", "failed", "missing")
_MAX_LISTED = 20


class Sweep:
    """A sweep as it was typed."""

    def __init__(self, folder: Path) -> None:
        """Read what Hydra wrote.

        Raises:
            ConfigError: `folder` is not that of a sweep, or of one whose jobs are not known beforehand.
        """
        self.folder = folder
        if not (folder / SWEEP).is_file():
            raise ConfigError(f"{folder}: has no {SWEEP}, so it is not the folder of a sweep (--multirun).")
        self._config = config = OmegaConf.load(folder / SWEEP)
        sweeper = config.hydra.sweeper
        if not str(sweeper["_target_"]).endswith(BasicSweeper.__name__):
            raise ConfigError(
                f"{folder}: {sweeper['_target_']} chooses its jobs as it goes; no grid is known."
            )
        self.typed = list(config.hydra.overrides.task)
        self._swept = [f"{key}={value}" for key, value in (sweeper.params or {}).items()]
        self.runs = Path(config.hydra.runtime.cwd) / config.results / "runs"
        begun = datetime.fromtimestamp((folder / SWEEP).stat().st_mtime, UTC)
        self.begun = begun.isoformat(timespec="seconds")

    @property
    def command(self) -> str:
        """What measures the rest."""
        chosen = [*self._config.hydra.overrides.hydra, *self.typed]
        flags = [one for one in chosen if not one.startswith("hydra.mode=")]
        return shlex.join(["python", "-m", "harness.bench", "--multirun", *flags])

    def cells(self) -> list[Asked]:
        """All cells, in the order of the jobs. Composed once, as that takes a fifth of a second a job."""
        kept = self.folder / CELLS
        source = digest([source_hash(), configuration_hash(Path(conf.__file__).parent)])
        if kept.is_file():
            known = json.loads(kept.read_text())
            if known["source"] == source:
                return [Asked(**cell) for cell in known["cells"]]
        parser = OverridesParser.create()
        parsed = parser.parse_overrides([*self._swept, *self.typed])
        (jobs,) = BasicSweeper.split_arguments(parsed, None)
        with initialize_config_module("conf", version_base="1.3"):
            cells = [cell for job in jobs for cell in asked(compose("bench", overrides=job), job)]
        known = {"source": source, "cells": [cell._asdict() for cell in cells]}
        part = kept.with_suffix(".part")
        part.write_text(json.dumps(known))
        part.replace(kept)
        return cells


def newest(results: Path) -> Path:
    """The folder of the last sweep below `results`."""
    found = sorted((results / JOBS).glob(f"*/*/{SWEEP}"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise ConfigError(
            f"{results / JOBS}: holds no sweep. Measure one (python -m harness.bench --multirun ...), or name"
            " its folder: python -m harness.sweep status FOLDER"
        )
    return found[-1].parent


def status(sweep: Sweep) -> dict[str, Any]:
    """How a sweep goes, as JSON types: `cells`, `counts` by state, `seconds_left` (None: not known)."""
    shelf = Shelf(sweep.runs)
    cells = [told(cell, shelf.find(cell, sweep.begun)) for cell in sweep.cells()]
    counts = Counter(cell["state"] for cell in cells)
    return {
        "sweep": str(sweep.folder),
        "counts": {state: counts[state] for state in _STATES},
        "seconds_left": seconds_left(cells),
        "cells": cells,
    }


def show(sweep: Sweep, found: Mapping[str, Any], console: Console) -> None:
    """A line a target and task, then what runs and what failed."""
    cells: Sequence[Mapping[str, Any]] = found["cells"]
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for cell in cells:
        groups.setdefault((cell["target"], cell["task"]), []).append(cell)
    rows = [
        [*names, *(str(sum(one["state"] == state for one in group)) for state in _STATES)]
        for names, group in groups.items()
    ]
    console.table(["target", "task", *_STATES], rows)
    common = set.intersection(*(set(cell["overrides"]) for cell in cells)) if cells else set()
    for state, tell in (("running", _running), ("failed", _failed)):
        chosen = [cell for cell in cells if cell["state"] == state]
        for cell in chosen[:_MAX_LISTED]:
            own = [one for one in cell["overrides"] if one not in common]
            console.note(f"{state}: {' '.join([*own, cell['decoding']])}: {tell(cell)}")
        if chosen[_MAX_LISTED:]:
            console.note(f"{state}: {len(chosen) - _MAX_LISTED} more, all of them in the JSON line")
    counted = ", ".join(f"{number} {state}" for state, number in found["counts"].items())
    left = found["seconds_left"]
    console.note(f"{len(cells)} cells: {counted}")
    if found["counts"]["done"] < len(cells):
        time = "not known, as none is done" if left is None else f"about {duration(left)}"
        console.note(f"time left: {time}; what measures the rest: {sweep.command}")


def _running(cell: Mapping[str, Any]) -> str:
    return f"{cell['share']:.0%}, {cell['who']}"


def _failed(cell: Mapping[str, Any]) -> str:
    return f"after {cell['share']:.0%}: {'; '.join(cell['reasons'])}"
