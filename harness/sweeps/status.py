"""Status of a sweep: its cells, from the folder that Hydra made for it, and what became of each."""

from __future__ import annotations

import json
import re
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_module
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser

import conf
from harness.config import ConfigError
from harness.store.locations import RUNS
from harness.sweeps.cell_states import RequestedCell, RunIndex, cell_status, requested_cells, seconds_left
from harness.system.console import Console, duration
from harness.system.files import write_json
from harness.system.naming import digest
from harness.system.provenance import configuration_hash, source_hash
from harness.system.secrets import REDACTED, redact

JOBS = "jobs"
"""Folder below the results that holds Hydra's folders."""
SWEEP = "multirun.yaml"
"""File that Hydra writes into the folder of a sweep."""
CELLS = "cells.json"
"""File beside it that caches the composed cells."""
_STATES = ("done", "running", "failed", "missing")
_MAX_BYTES = 10_000_000
_UNREADABLE = re.compile(rf"\$\{{[^{{}}]*\}}|{re.escape(REDACTED)}")
"""An interpolation without another one inside, or a secret that was redacted."""
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
        written = _read(folder / SWEEP)
        sweeper = str(_part(written, "hydra.sweeper._target_", str, folder))
        if not sweeper.endswith(BasicSweeper.__name__):
            raise ConfigError(
                f"{folder}: {sweeper} chooses its jobs while it runs, so its cells are not known."
            )
        self.typed = _texts(written, "hydra.overrides.task", folder)
        self._chosen = _texts(written, "hydra.overrides.hydra", folder)
        params = _part(written, "hydra.sweeper.params", dict, folder) or {}
        self._swept = [f"{key}={value}" for key, value in params.items()]
        results = str(_part(written, "results", str, folder))
        self.runs = Path(str(_part(written, "hydra.runtime.cwd", str, folder))) / results / RUNS
        begun = datetime.fromtimestamp((folder / SWEEP).stat().st_mtime, UTC)
        self.begun = begun.isoformat(timespec="seconds")

    @property
    def command(self) -> str:
        """The command that measures the remaining cells; secrets, which are not stored, are missing in it."""
        chosen = [*self._chosen, *self.typed]
        flags = [override for override in chosen if not override.startswith("hydra.mode=")]
        return shlex.join(["python", "-m", "harness.bench", "--multirun", *flags])

    def cells(self) -> list[RequestedCell]:
        """All cells in the order of the jobs. Cached in a file, as composing takes 0.2 s per job.

        Interpolations among the overrides stay as they were typed.
        """
        cache = self.folder / CELLS
        source = digest(
            [source_hash(), configuration_hash(Path(conf.__file__).parent), self._swept, self.typed]
        )
        if (known := _cached(cache, source)) is not None:
            return known
        opaque = _Opaque()
        parsed = OverridesParser.create().parse_overrides(opaque.hide([*self._swept, *self.typed]))
        _refuse_hydra(self.folder, [override.get_key_element() for override in parsed])
        (jobs,) = BasicSweeper.split_arguments(parsed, None)
        with initialize_config_module("conf", version_base="1.3"):
            cells = [cell for job in jobs for cell in requested_cells(compose("bench", overrides=job), job)]
        cells = [RequestedCell(**redact(opaque.show(cell._asdict()))) for cell in cells]
        # The folder may be somebody else's, who lets nobody write into it.
        with suppress(OSError):
            write_json(cache, {"source": source, "cells": [cell._asdict() for cell in cells]})
        return cells


class _Opaque:
    """Stands in for what Hydra must not resolve (interpolations) or cannot read (redacted secrets)."""

    def __init__(self) -> None:
        self._originals: dict[str, str] = {}

    def hide(self, overrides: Sequence[str]) -> list[str]:
        """The overrides with a plain word for every interpolation and every redacted secret."""
        return [self._hidden(override) for override in overrides]

    def _hidden(self, text: str) -> str:
        while (found := _UNREADABLE.search(text)) is not None:
            word = f"opaque{len(self._originals)}word"
            # An inner interpolation may be hidden already.
            self._originals[word] = self.show(found[0])
            text = f"{text[: found.start()]}{word}{text[found.end() :]}"
        return text

    def show(self, value: Any) -> Any:
        """A copy of `value` (nested dicts and lists) with the originals."""
        if isinstance(value, Mapping):
            return {self.show(key): self.show(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.show(item) for item in value]
        if not isinstance(value, str):
            return value
        return re.sub(r"opaque\d+word", lambda word: self._originals.get(word[0], word[0]), value)


def _read(path: Path) -> Any:
    """The content of a file that may be a stranger's: no class is built, and no interpolation resolved."""
    if path.stat().st_size > _MAX_BYTES:
        raise ConfigError(f"{path}: has more than {_MAX_BYTES} bytes, so Hydra did not write it.")
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{path}: is not YAML: {' '.join(str(error).split())}") from error


def _part(tree: Any, path: str, kind: type, folder: Path) -> Any:
    """The part of a configuration at `path`; raises ConfigError unless it is a `kind` (or a null dict)."""
    for name in path.split("."):
        tree = tree.get(name) if isinstance(tree, dict) else None
    if isinstance(tree, kind) or (tree is None and kind is dict):
        return tree
    raise ConfigError(f"{folder / SWEEP}: {path} is no {kind.__name__}, so Hydra did not write it.")


def _texts(tree: Any, path: str, folder: Path) -> list[str]:
    return [str(item) for item in _part(tree, path, list, folder)]


def _refuse_hydra(folder: Path, keys: Sequence[str]) -> None:
    """Raise ConfigError if an override of jobs sets Hydra itself, which could make it read other files."""
    for key in keys:
        if re.match(r"[+~]*hydra([./@]|$)", key):
            raise ConfigError(
                f"{folder / SWEEP}: {key} stands among the overrides of jobs, which Hydra forbids."
            )


def _cached(cache: Path, source: str) -> list[RequestedCell] | None:
    """The cells in `cache` if it is whole and was made of `source`."""
    if not cache.is_file():
        return None
    try:
        known = json.loads(cache.read_text(encoding="utf-8"))
        return [RequestedCell(**cell) for cell in known["cells"]] if known["source"] == source else None
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


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
