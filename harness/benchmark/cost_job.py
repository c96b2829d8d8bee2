"""The commands of `python -m harness.cost`, from a composed configuration to a cost table or findings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from omegaconf import DictConfig, OmegaConf

from harness.config import ConfigError, near, with_parts
from harness.costs.grid import Grid, repaired
from harness.costs.table import COSTS, CostTable, DraftingCost, identity
from harness.profiling.kernels import kernels
from harness.profiling.products import linear, prompts
from harness.profiling.profile import DrafterTimings, Profile
from harness.profiling.rounds import parts, split
from harness.profiling.setup import Finding, ProfilingSetup, prepared
from harness.system import naming, provenance
from harness.system.console import Console
from harness.system.files import print_json
from harness.system.progress import waiting
from harness.system.secrets import redact

COMMANDS: dict[str, Callable[[ProfilingSetup], list[Finding]]] = {
    "parts": parts,
    "split": split,
    "kernels": kernels,
    "linear": linear,
    "prompts": prompts,
}
"""The commands beside `table`, by name."""


def run_costs(config: DictConfig) -> None:
    """Run the command that the configuration names, and print the JSON line.

    Raises:
        ConfigError: what cannot be profiled, and what to type instead.
    """
    console = Console()
    if config.command == "table":
        with console.watching():
            line = _write_table(config, console)
        print_json(line)
        return
    if config.command not in COMMANDS:
        known = ("table", *COMMANDS)
        raise ConfigError(
            f"command={config.command}: no such command.{near(str(config.command), known)}"
            f" Allowed: {', '.join(known)}; type python -m harness.cost COMMAND [key=value] ..."
        )
    # Products are compared from plain layers on.
    changes = {"linear": "plain"} if config.command == "linear" else {}
    with prepared(config, console.note, **changes) as setup:
        found = COMMANDS[config.command](setup)
        line = {"command": config.command, "target": setup.spec.name, "findings": found}
    print_json(line)


def _write_table(config: DictConfig, console: Console) -> dict[str, Any]:
    """Profile the target and the drafters into a cost table; returns the facts of the JSON line."""
    settings: Any = OmegaConf.to_container(config, resolve=True)
    settings["methods"] = with_parts(settings["methods"], "methods")
    with prepared(config, console.note) as setup:
        profile, target, weights = setup.profile, setup.target, setup.weights
        num_points = len(profile.batches) * len(profile.contexts)
        with waiting("timing the target's forwards", total=num_points, timed=True) as wait:

            def noted(text: str) -> None:
                console.note(text)
                wait.advance()

            timings = profile.target(target, noted)
        # Timing ignores end tokens, so the loop needs none.
        engine = setup.engine
        costs = {}
        with waiting("timing the drafters", total=len(setup.drafters), timed=True) as wait:
            for name, drafter in setup.drafters.items():
                wait.step(name)
                own = redact(settings["methods"][name])
                costs[name] = drafting_cost(profile, profile.drafter(engine, drafter), own)
                wait.advance()
    packages = provenance.packages()
    device = provenance.device_facts(target.device)
    table = CostTable(
        identity=identity({**weights.card, "linear": target.linear}, device, packages),
        name=setup.spec.name,
        forward=monotone_grid(profile, timings.forward),
        settle=monotone_grid(profile, timings.settle),
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
    console.note(f"the table is in {place}; the repeats of a point spread over {timings.spread:.1%} of it")
    return {
        "table": str(place),
        "target": setup.spec.name,
        "drafters": sorted(costs),
        "spread": timings.spread,
    }


def drafting_cost(profile: Profile, timings: DrafterTimings, settings: dict[str, Any]) -> DraftingCost:
    """A drafter's timings as an entry of a cost table. settings: the drafter's configuration."""
    axes: dict[str, tuple[int, ...]] = {"batch": profile.batches, "context": profile.contexts}
    # Retrieval has no reason to rise with the context, but no reason to fall either.
    rounds = np.maximum.accumulate(np.maximum.accumulate(timings.round, 0), 1)
    call = None if timings.call is None else monotone_grid(profile, timings.call)
    return DraftingCost(settings=settings, round=Grid(axes=axes, values=rounds), call=call)


def monotone_grid(profile: Profile, seconds: NDArray[np.float64]) -> Grid:
    """Measured seconds [batch, context, tokens] as a grid that rises along every axis."""
    axes = {"batch": profile.batches, "context": profile.contexts, "tokens": profile.tokens}
    return Grid(axes=axes, values=repaired(seconds))
