"""Plan: a composed configuration turned into objects and checked as a whole, before anything is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from omegaconf import DictConfig, OmegaConf

from harness.benchmark.measure import Measure
from harness.config import ConfigError, build
from harness.decoding.acceptance import Acceptor
from harness.decoding.sampling import DecodingParams
from harness.drafting.drafter import Drafter
from harness.engines.transformers_generate import Rung
from harness.store.identity import run_config
from harness.store.records import BASELINE
from harness.target.spec import TargetSpec
from harness.tasks.task import Task
from harness.tracking.tracker import Tracker

"""The arm that every other one is compared with; it is always among the arms."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything one process will measure: a run per decoding.

    config: the resolved configuration as JSON types. replicate: a number, or `next` for the first free one.
    """

    target: TargetSpec
    task: Task
    arms: dict[str, Drafter]
    decodings: dict[str, DecodingParams]
    acceptor: Acceptor
    measure: Measure
    rungs: dict[str, Rung]
    tracker: Tracker
    replicate: int | Literal["next"]
    results: Path
    config: dict[str, Any]
    overrides: list[str]

    def run_config(self, params: DecodingParams) -> dict[str, Any]:
        """What the manifest of the run with `params` holds as its configuration."""
        config = run_config(self.config, params.name)
        if card := self.acceptor.card():
            config["acceptor"] = {**config["acceptor"], "card": card}
        return config

    def repeats(self, params: DecodingParams) -> dict[str, int]:
        """How often each arm and rung answers a prompt, a seed: by the names that records have."""
        measure = self.measure
        often = measure.repeats_at(params.greedy) if measure.timed else 1
        rungs = {rung.name: measure.rung_repeats_at(params.greedy) for rung in self.rungs.values()}
        return {**dict.fromkeys(self.arms, often), **{name: num for name, num in rungs.items() if num}}


def make_plan(cfg: DictConfig, overrides: list[str]) -> Plan:
    """Build and cross-check.

    Raises:
        ConfigError: what cannot be run, and what to type instead.
    """
    config: Any = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=False)
    _refuse_missing(config, "")
    arms = {name: build(node, f"methods.{name}") for name, node in (cfg.methods or {}).items()}
    decodings = {name: build(node, f"decodings.{name}") for name, node in (cfg.decodings or {}).items()}
    if not decodings:
        raise ConfigError("no decoding is chosen; type decoding=greedy, or decoding=[greedy,sampled]")
    if BASELINE not in arms:
        raise ConfigError(
            f"methods.{BASELINE} is missing, and every number is relative to it; do not delete it"
        )
    acceptor = build(cfg.acceptor, "acceptor")
    for params in decodings.values():
        if acceptor.forced and not params.ignore_end_token:
            raise ConfigError(
                f"decodings.{params.name}.ignore_end_token=false: with forced acceptance an end token comes"
                " by chance, and lengths would not compare; leave it to accept=forced, which sets it"
            )
        if params.name == "greedy" and not params.greedy:
            raise ConfigError(
                f"decodings.greedy.temperature={params.temperature:g}: it would be called greedy, and has no"
                f" seeds; type decoding=sampled decodings.sampled.temperature={params.temperature:g}"
            )
        for name, drafter in arms.items():
            if not params.greedy and not drafter.samples:
                raise ConfigError(
                    f"methods.{name}: only defined at temperature 0, but decodings.{params.name} has"
                    f" {params.temperature}; type decoding=greedy, or leave {name} out"
                )
    replicate = config["replicate"]
    if replicate != "next" and not (isinstance(replicate, int) and replicate >= 0):
        raise ConfigError(f"replicate={replicate}: a number from 0, or `next`")
    if not isinstance(config["dry_run"], bool):
        raise ConfigError(f"dry_run={config['dry_run']}: true or false")
    return Plan(
        target=build(cfg.target, "target"),
        task=build(cfg.task, "task"),
        # Vanilla first, so that progress and tables begin with it.
        arms={BASELINE: arms.pop(BASELINE), **arms},
        decodings=decodings,
        acceptor=acceptor,
        measure=build(cfg.measure, "measure"),
        rungs={name: build(node, f"rungs.{name}") for name, node in (cfg.rungs or {}).items()},
        tracker=build(cfg.tracker, "tracker"),
        replicate=replicate,
        results=Path(config["results"]),
        config=config,
        overrides=overrides,
    )


def _refuse_missing(node: Any, where: str) -> None:
    """Raise for the first `???` below `node`."""
    if isinstance(node, dict):
        for key, value in node.items():
            _refuse_missing(value, f"{where}.{key}" if where else str(key))
    elif node == "???":
        raise ConfigError(f"{where} has no value; type {where}=...")
