"""One profiling run from its composed configuration to a cost table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from omegaconf import DictConfig, OmegaConf

from harness.config import ConfigError, build
from harness.costs.grid import Grid, repaired
from harness.costs.table import COSTS, CostTable, DraftingCost, identity
from harness.decoding.loop import LocalEngine
from harness.profiling.profile import DrafterTimings, Profile
from harness.system import naming, provenance
from harness.system.console import Console
from harness.system.machine_lock import machine_lock, units_of
from harness.system.processes import refuse_shared
from harness.target.model import Target
from harness.target.spec import TargetSpec


def run_costs(config: DictConfig) -> None:
    """Profile, write the table, print the JSON line.

    Raises:
        ConfigError: what cannot be profiled, and what to type instead.
    """
    console = Console()
    settings: Any = OmegaConf.to_container(config, resolve=True)
    profile: Profile = build(config.costs, "costs")
    drafters = {str(name): build(node, f"methods.{name}") for name, node in (config.methods or {}).items()}
    spec: TargetSpec = build(config.target, "target")
    refuse_shared(spec.tensor_parallel, "profiling")
    with machine_lock(units_of(spec.resolved_device(), spec.device_map is not None), True, console.note):
        weights = spec.load(console.note)
        profile.check(weights.max_context)
        target = Target(weights.model, spec.attention, spec.linear, spec.cache, spec.compile)
        for name, drafter in drafters.items():
            try:
                drafter.bind(target)
            except ConfigError as error:
                raise ConfigError(f"methods.{name}.{error}") from error
        target.reserve(profile.most_tokens)
        timings = profile.target(target, console.note)
        engine = LocalEngine(target, weights.end_token_ids, weights.max_context)
        costs = {}
        for name, drafter in drafters.items():
            console.note(f"profiling {name}")
            own = naming.redact(settings["methods"][name])
            costs[name] = drafting_cost(profile, profile.drafter(engine, drafter), own)
    packages = provenance.packages()
    device = provenance.device_facts(target.device)
    table = CostTable(
        identity=identity({**weights.card, "linear": target.linear}, device, packages),
        name=spec.name,
        forward=_monotone(profile, timings.forward),
        settle=_monotone(profile, timings.settle),
        spread=timings.spread,
        drafters=costs,
        made={
            "created": naming.now(),
            "git": provenance.git_state(),
            "packages": packages,
            "device": device,
            "source": weights.card["source"],
            "settings": settings["costs"],
        },
    )
    place = table.save(Path(settings["results"]) / COSTS)
    console.note(f"the table is in {place}; a cell's repeats spread over {timings.spread:.1%} of it")
    told = {"table": str(place), "target": spec.name, "drafters": sorted(costs), "spread": timings.spread}
    print(json.dumps(told), flush=True)


def drafting_cost(profile: Profile, timings: DrafterTimings, settings: dict[str, Any]) -> DraftingCost:
    """A drafter's timings as an entry of a cost table. settings: the drafter's configuration."""
    axes: dict[str, tuple[int, ...]] = {"batch": profile.batches, "context": profile.contexts}
    # Retrieval has no reason to rise with the context, but no reason to fall either.
    rounds = np.maximum.accumulate(np.maximum.accumulate(timings.round, 0), 1)
    call = None if timings.call is None else _monotone(profile, timings.call)
    return DraftingCost(settings=settings, round=Grid(axes=axes, values=rounds), call=call)


def _monotone(profile: Profile, seconds: NDArray[np.float64]) -> Grid:
    axes = {"batch": profile.batches, "context": profile.contexts, "tokens": profile.tokens}
    return Grid(axes=axes, values=repaired(seconds))
