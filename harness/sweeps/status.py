"""Status of a sweep: its cells, from the folder that Hydra made for it, and what became of each."""

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
from harness.sweeps.cell_states import RequestedCell, RunIndex, cell_status, requested_cells, seconds_left
from harness.system.console import Console, duration
from harness.system.naming import digest
from harness.system.provenance import configuration_hash, source_hash

JOBS = "jobs"
"""Folder below the results that holds Hydra's folders."""
SWEEP = "multirun.yaml"
"""File that Hydra writes into the folder of a sweep."""
CELLS = "cells.json"
"""File beside it that caches the composed cells."""
_STATES = ("done", "running", "failed", "missing")
_MAX_LISTED = 20
"""Cells of one state that are printed one by one."""


class Sweep:
    """A sweep as its command line requested it."""

    def __init__(self, folder: Path) -> None:
        """Read what Hydra wrote into `folder`.

        Raises:
            ConfigError: `folder` belongs to no sweep, or to one whose sweeper chooses jobs as it runs.
        """
        self.folder = folder
        if not (folder / SWEEP).is_file():
            raise ConfigError(f"{folder}: has no {SWEEP}, so it is not the folder of a sweep (--multirun).")
        self._config = config = OmegaConf.load(folder / SWEEP)
        sweeper = config.hydra.sweeper
        if not str(sweeper["_target_"]).endswith(BasicSweeper.__name__):
            raise ConfigError(
                f"{folder}: {sweeper['_target_']} chooses its jobs while it runs, so its cells are not known."
            )
        self.typed = list(config.hydra.overrides.task)
        self._swept = [f"{key}={value}" for key, value in (sweeper.params or {}).items()]
        self.runs = Path(config.hydra.runtime.cwd) / config.results / "runs"
        begun = datetime.fromtimestamp((folder / SWEEP).stat().st_mtime, UTC)
        self.begun = begun.isoformat(timespec="seconds")

    @property
    def command(self) -> str:
        """The command that measures the remaining cells."""
        chosen = [*self._config.hydra.overrides.hydra, *self.typed]
        flags = [override for override in chosen if not override.startswith("hydra.mode=")]
        return shlex.join(["python", "-m", "harness.bench", "--multirun", *flags])

    def cells(self) -> list[RequestedCell]:
        """All cells in the order of the jobs. Cached in a file, as composing takes 0.2 s per job."""
        cache = self.folder / CELLS
        source = digest([source_hash(), configuration_hash(Path(conf.__file__).parent)])
        if cache.is_file():
            known = json.loads(cache.read_text())
            if known["source"] == source:
                return [RequestedCell(**cell) for cell in known["cells"]]
        parser = OverridesParser.create()
        parsed = parser.parse_overrides([*self._swept, *self.typed])
        (jobs,) = BasicSweeper.split_arguments(parsed, None)
        with initialize_config_module("conf", version_base="1.3"):
            cells = [cell for job in jobs for cell in requested_cells(compose("bench", overrides=job), job)]
        known = {"source": source, "cells": [cell._asdict() for cell in cells]}
        part = cache.with_suffix(".part")
        part.write_text(json.dumps(known))
        part.replace(cache)
        return cells


def newest(results: Path) -> Path:
    """The folder of the most recent sweep below `results`.

    Raises:
        ConfigError: there is no sweep.
    """
    sweeps = sorted((results / JOBS).glob(f"*/*/{SWEEP}"), key=lambda path: path.stat().st_mtime)
    if not sweeps:
        raise ConfigError(
            f"{results / JOBS}: holds no sweep. Measure one (python -m harness.bench --multirun ...), or name"
            " its folder: python -m harness.sweep status FOLDER"
        )
    return sweeps[-1].parent


def status(sweep: Sweep) -> dict[str, Any]:
    """The status of a sweep as JSON types: `cells`, `counts` by state, `seconds_left` (None if unknown)."""
    index = RunIndex(sweep.runs)
    cells = [cell_status(cell, index.find(cell, sweep.begun)) for cell in sweep.cells()]
    counts = Counter(cell["state"] for cell in cells)
    return {
        "sweep": str(sweep.folder),
        "counts": {state: counts[state] for state in _STATES},
        "seconds_left": seconds_left(cells),
        "cells": cells,
    }


def show(sweep: Sweep, current: Mapping[str, Any], console: Console) -> None:
    """Print one line per target and task, then the running and the failed cells.

    current: the result of `status`.
    """
    cells: Sequence[Mapping[str, Any]] = current["cells"]
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for cell in cells:
        groups.setdefault((cell["target"], cell["task"]), []).append(cell)
    rows = [
        [*names, *(str(sum(one["state"] == state for one in group)) for state in _STATES)]
        for names, group in groups.items()
    ]
    console.table(["target", "task", *_STATES], rows)
    common = set.intersection(*(set(cell["overrides"]) for cell in cells)) if cells else set()
    for state, describe in (("running", _running), ("failed", _failed)):
        chosen = [cell for cell in cells if cell["state"] == state]
        for cell in chosen[:_MAX_LISTED]:
            own = [override for override in cell["overrides"] if override not in common]
            console.note(f"{state}: {' '.join([*own, cell['decoding']])}: {describe(cell)}")
        if chosen[_MAX_LISTED:]:
            console.note(f"{state}: {len(chosen) - _MAX_LISTED} more, all of them in the JSON line")
    counted = ", ".join(f"{number} {state}" for state, number in current["counts"].items())
    left = current["seconds_left"]
    console.note(f"{len(cells)} cells: {counted}")
    if current["counts"]["done"] < len(cells):
        time = "not known, as no cell is done" if left is None else f"about {duration(left)}"
        console.note(f"time left: {time}; to measure the rest: {sweep.command}")


def _running(cell: Mapping[str, Any]) -> str:
    return f"{cell['share']:.0%}, {cell['who']}"


def _failed(cell: Mapping[str, Any]) -> str:
    return f"after {cell['share']:.0%}: {'; '.join(cell['reasons'])}"
