"""Published: what papers printed, read from `results/published` and found by target, task and method.

A CSV a paper, numbers as printed; `papers.yaml` has each paper's source, setting and cautions, and how the
papers spell targets, tasks and methods of `conf/`.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import OmegaConf

from harness.config import ConfigError

PACKAGED = Path(__file__).parent / "published_tables"
"""Folder of the tables in an installed package; `pyproject.toml` puts them there."""
_CHECKOUT = Path(__file__).parents[2] / "results" / "published"
FOLDER = _CHECKOUT if _CHECKOUT.is_dir() else PACKAGED
_COLUMNS = ("table", "model", "task", "method", "temperature", "batch_size", "hardware", "metric", "value")


class Place(NamedTuple):
    """A cell of a paper: names are ours where we have one, else the paper's."""

    target: str
    task: str
    temperature: float
    batch_size: int
    table: str
    hardware: str
    scenario: str = ""
    """Ours, where the paper's task names one; "" for a plain conversation."""


class Value(NamedTuple):
    """The numbers of a method in a cell of a paper; None where the paper has none."""

    method: str
    """Name of the method in the paper."""
    speedup: float | None
    tau: float | None


@dataclass(frozen=True, kw_only=True)
class Paper:
    """The results of one paper."""

    name: str
    title: str
    source: str
    setting: dict[str, Any]
    cautions: list[str]
    reference: str
    """Our name of the method that ratios are relative to; the index names one for all papers, and a paper may
    have its own."""
    cells: dict[Place, dict[str, Value]] = field(default_factory=dict)
    """Values by place and by our name of the method, or the paper's where we have none."""


def load_papers(folder: Path = FOLDER) -> list[Paper]:
    """All papers of `folder`; none where there is no such folder.

    Raises:
        ConfigError: a CSV that `papers.yaml` does not name, or a row without a column or a number.
    """
    index = folder / "papers.yaml"
    if not index.is_file():
        return []
    known: Any = OmegaConf.to_container(OmegaConf.load(index))
    targets, tasks, methods = (
        {theirs: ours for ours, spellings in known[kind].items() for theirs in spellings}
        for kind in ("targets", "tasks", "methods")
    )
    played = {
        theirs: (task, scenario)
        for scenario, own in known.get("scenarios", {}).items()
        for task, spellings in own.items()
        for theirs in spellings
    }
    for path in sorted(folder.glob("*.csv")):
        if path.stem not in known["papers"]:
            raise ConfigError(f"{path}: not in {index}; name its source, setting and cautions there")
    return [
        Paper(
            name=name,
            cells=_cells(folder / f"{name}.csv", targets, tasks, methods, played),
            **{"reference": known["reference"], **about},
        )
        for name, about in known["papers"].items()
    ]


def _cells(
    path: Path,
    targets: Mapping[str, str],
    tasks: Mapping[str, str],
    methods: Mapping[str, str],
    played: Mapping[str, tuple[str, str]],
) -> dict[Place, dict[str, Value]]:
    found: dict[Place, dict[str, Value]] = {}
    for row in _rows(path):
        task, scenario = played.get(row["task"], (tasks.get(row["task"], row["task"]), ""))
        place = Place(
            targets.get(row["model"], row["model"]),
            task,
            float(row["temperature"]),
            int(row["batch_size"]),
            row["table"],
            row["hardware"],
            scenario,
        )
        cell = found.setdefault(place, {})
        method = methods.get(row["method"], row["method"])
        value = cell.get(method, Value(row["method"], None, None))
        number = float(row["value"])
        is_speedup = row["metric"] == "speedup"
        cell[method] = value._replace(speedup=number) if is_speedup else value._replace(tau=number)
    return found


def _rows(path: Path) -> Iterator[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        for number, row in enumerate(csv.DictReader(file), start=2):
            missing = [name for name in _COLUMNS if not row.get(name)]
            if missing or row["metric"] not in ("speedup", "acceptance_length"):
                raise ConfigError(
                    f"{path}:{number}: needs {', '.join(missing) or 'a metric'}; columns are"
                    f" {', '.join(_COLUMNS)}, metrics are speedup and acceptance_length"
                )
            yield row
