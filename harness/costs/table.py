"""Cost tables: seconds of a target's forward by (batch, context, tokens), and of drafters' rounds.

`python -m harness.cost` makes them. `tokens` are those of one sequence in one forward: the pending token and
the drafted ones. `context`: tokens of a sequence that are in the cache already.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from harness.config import ConfigError
from harness.costs.grid import Floats, Grid
from harness.system.files import write_json
from harness.system.naming import class_names, digest, slug
from harness.system.provenance import device_identity

COSTS = "costs"
"""Folder of the tables, below the results."""
_VERSION = 1
_SHAPE = (
    *("architecture", "num_parameters", "num_layers", "vocab_size", "step_bytes", "cache_bytes_per_token"),
    *("dtype", "attention", "linear", "cache", "compile", "quantisation", "num_experts", "experts_per_token"),
)
"""Keys of a target's card that its seconds depend on. The values of the weights do not matter."""


@dataclass(frozen=True, kw_only=True)
class DraftingCost:
    """Seconds that a drafter takes."""

    settings: dict[str, Any]
    """Configuration of the drafter."""
    round: Grid
    """Seconds of propose and observe together, by (batch, context)."""
    call: Grid | None = None
    """Seconds of a forward of the drafter's own model, by (batch, context, tokens); None if it has none."""


@dataclass(frozen=True, kw_only=True)
class CostTable:
    """Costs of one target on one device."""

    identity: dict[str, Any]
    """The facts that the seconds depend on, as the function `identity` gives them."""
    name: str
    forward: Grid
    """Seconds of `Target.verify`."""
    settle: Grid
    """Seconds of acceptance, its transfer to the host, and the commit."""
    spread: float
    """Median over grid points of (interquartile range of the repeats / their median)."""
    drafters: dict[str, DraftingCost] = field(default_factory=dict)
    made: dict[str, Any] = field(default_factory=dict)
    """When and with which code the table was measured."""

    def seconds(self, batch: ArrayLike, context: ArrayLike, tokens: ArrayLike) -> Floats:
        """Seconds of a forward of `tokens` tokens per sequence, for `batch` sequences with `context` cached.

        Takes numbers or arrays that broadcast. The seconds rise with each of the three and are linear between
        measured points. Below the first context the value of the first one holds.

        Raises:
            ConfigError: a point outside of the measured range.
        """
        return self.forward.at(batch=batch, context=context, tokens=tokens)

    def curve(self, batch: float, context: float) -> Floats:
        """`seconds` for 1, 2, ... tokens, as many as were measured: what tree policies weigh."""
        return self.seconds(batch, context, np.arange(1, self.forward.axes["tokens"][-1] + 1))

    def step_seconds(self, batch: ArrayLike, context: ArrayLike, tokens: ArrayLike) -> Floats:
        """A round without its drafting: `seconds`, acceptance and commit."""
        return self.seconds(batch, context, tokens) + self.settle.at(
            batch=batch, context=context, tokens=tokens
        )

    def drafting(self, method: str, settings: Mapping[str, Any]) -> DraftingCost | None:
        """Costs of a method with exactly these settings; None if it was not measured."""
        found = self.drafters.get(method)
        return found if found is not None and class_names(found.settings) == class_names(settings) else None

    def expect(self, wanted: Mapping[str, Any]) -> CostTable:
        """This table, if it was measured on what `wanted` (see `identity`) describes.

        Raises:
            ConfigError: another device, target or software; what differs, and what to type.
        """
        differing = [
            f"{part}.{key} is {value!r} there and {wanted[part].get(key)!r} here"
            for part, facts in self.identity.items()
            for key, value in facts.items()
            if wanted[part].get(key) != value
        ]
        if differing:
            raise ConfigError(
                f"cost table of {self.name}: measured on something else: {'; '.join(differing)}."
                " Measure it here: python -m harness.cost target=NAME method=[NAME,...]"
            )
        return self

    @property
    def file(self) -> str:
        """Its name: one table a device and target shape."""
        return f"{slug(self.name)}-{digest(self.identity)[:10]}.json"

    def save(self, folder: Path) -> Path:
        """Write it into `folder`; drafters of an earlier table of the same identity stay."""
        place = folder / self.file
        known = load_table(place).drafters if place.is_file() else {}
        drafters = {
            name: {
                "settings": cost.settings,
                "round": cost.round.to_json(),
                "call": cost.call and cost.call.to_json(),
            }
            for name, cost in {**known, **self.drafters}.items()
        }
        document = {
            "version": _VERSION,
            "name": self.name,
            "identity": self.identity,
            "made": self.made,
            "spread": self.spread,
            "forward": self.forward.to_json(),
            "settle": self.settle.to_json(),
            "drafters": drafters,
        }
        folder.mkdir(parents=True, exist_ok=True)
        write_json(place, document)
        return place


def load_table(file: Path) -> CostTable:
    """Read what `CostTable.save` wrote.

    Raises:
        ConfigError: it is not there, or is no table of this version.
    """
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
        if data["version"] != _VERSION:
            raise ValueError(f"version {data['version']}, this harness reads {_VERSION}")
        return CostTable(
            identity=data["identity"],
            name=data["name"],
            forward=Grid.from_json(data["forward"]),
            settle=Grid.from_json(data["settle"]),
            spread=data["spread"],
            drafters={
                name: DraftingCost(
                    settings=cost["settings"],
                    round=Grid.from_json(cost["round"]),
                    call=Grid.from_json(cost["call"]) if cost["call"] else None,
                )
                for name, cost in data["drafters"].items()
            },
            made=data["made"],
        )
    except FileNotFoundError:
        raise ConfigError(f"{file}: no such cost table; python -m harness.cost makes one") from None
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{file}: is no cost table ({error}); python -m harness.cost makes one") from error


def load_tables(results: Path) -> list[CostTable]:
    """All tables below a results folder, by name."""
    folder = results / COSTS
    files = [file for file in folder.iterdir() if file.name.endswith(".json")] if folder.is_dir() else []
    return [load_table(file) for file in sorted(files, key=lambda file: file.name)]


def identity(
    card: Mapping[str, Any], device: Mapping[str, Any], packages: Mapping[str, str]
) -> dict[str, dict[str, Any]]:
    """What a table's seconds depend on, from a target's card and `provenance` facts; JSON types."""
    return {
        "device": device_identity(device),
        "target": {key: card.get(key) for key in _SHAPE},
        "software": {"torch": packages.get("torch")},
    }
