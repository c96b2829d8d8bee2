"""A composed configuration turned into objects and checked as a whole, before anything is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from omegaconf import DictConfig, OmegaConf

from harness.benchmark.measure import Measure
from harness.benchmark.scenarios.scenario import Scenario
from harness.benchmark.scenarios.turn_runner import Player
from harness.config import SERVE, ConfigError, build, with_parts
from harness.decoding.acceptance import Acceptor
from harness.decoding.sampling import DecodingParams
from harness.drafting.drafter import Drafter
from harness.engines.engine import Engine, Method
from harness.engines.transformers_generate import Rung
from harness.store.identity import run_config
from harness.store.records import BASELINE, Cell
from harness.target.spec import TargetSpec
from harness.tasks.task import Task
from harness.tracking.tracker import Tracker

_UNTOLD_WIDTH = 8
"""Tokens of the forward in which a difference is explained, where an engine does not say how wide its is."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything that one process will measure: a run per decoding."""

    engine: Engine
    scenario: Scenario
    target: TargetSpec
    task: Task
    arms: dict[str, Method]
    """Vanilla first, so that progress and tables begin with it."""
    decodings: dict[str, DecodingParams]
    acceptor: Acceptor
    measure: Measure
    rungs: dict[str, Rung]
    tracker: Tracker
    replicate: int | Literal["next"]
    """`next` is the first replicate that is not finished."""
    results: Path
    config: dict[str, Any]
    """The resolved configuration, JSON types."""
    overrides: list[str]

    def run_config(self, params: DecodingParams) -> dict[str, Any]:
        """The configuration that the manifest of the run with `params` holds."""
        config = run_config(self.config, params.name)
        if card := self.acceptor.card():
            config["acceptor"] = {**config["acceptor"], "card": card}
        return config

    def players(self, params: DecodingParams) -> list[Player]:
        """Who takes part in the run with `params`: the arms, then the rungs where they are timed."""
        arms = [
            Player(name=name, method=method)
            if self.engine.tells_rounds
            else Player(
                name=name, method=method, kind="roundless", width=1 if name == BASELINE else _UNTOLD_WIDTH
            )
            for name, method in self.arms.items()
        ]
        rungs = self.rungs.values() if self.measure.rung_repeats_at(params.greedy) else ()
        return [
            *arms,
            *(
                Player(name=rung.name, method=rung, kind="rung", width=rung.width, in_process=rung.in_process)
                for rung in rungs
            ),
        ]

    def repeats(self, params: DecodingParams) -> dict[str, int]:
        """How often each player answers a prompt, per seed, by the player's name."""
        measure, greedy = self.measure, params.greedy
        return {
            player.name: measure.rung_repeats_at(greedy)
            if player.kind == "rung"
            else measure.baseline_repeats_at(greedy)
            if player.name == BASELINE
            else measure.repeats_at(greedy)
            for player in self.players(params)
        }


def make_cell(plan: Plan, params: DecodingParams) -> Cell:
    """The cell that `plan` measures with `params`."""
    return Cell(
        target=plan.target.name,
        task=plan.task.name,
        decoding=params.name,
        temperature=params.temperature,
        batch_size=plan.measure.batch_size,
        profile=plan.measure.profile,
        baseline=plan.engine.baseline(plan.target),
        acceptor=plan.acceptor.name,
        engine=plan.engine.name,
        scenario=plan.scenario.name,
    )


def make_plan(cfg: DictConfig, overrides: list[str]) -> Plan:
    """Build every object of the configuration and check that they fit one another.

    Raises:
        ConfigError: something that cannot be run, and what to type instead.
    """
    config: Any = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=False)
    _refuse_missing(config, "")
    methods: dict[str, Any] = config["methods"]
    serve = {name: node.get(SERVE) or {} for name, node in methods.items() if isinstance(node, dict)}
    config["methods"] = methods = with_parts(methods, "methods")
    engine: Engine = build(cfg.engine, "engine")
    arms = {name: engine.arm(name, node, serve.get(name, {})) for name, node in methods.items()}
    decodings, rungs = (
        {name: build(node, f"{group}.{name}") for name, node in (cfg[group] or {}).items()}
        for group in ("decodings", "rungs")
    )
    if BASELINE not in arms:
        raise ConfigError(
            f"methods.{BASELINE} is missing, and every number is relative to it; do not delete it"
        )
    acceptor = build(cfg.acceptor, "acceptor")
    scenario: Scenario = build(cfg.scenario, "scenario")
    measure: Measure = build(cfg.measure, "measure")
    arms = {name: _remembering(name, arm, config, scenario) for name, arm in arms.items()}
    _check_decodings(decodings, acceptor, arms)
    _check_switches(config)
    engine.refuse(arms, rungs, acceptor)
    _check_scenario(scenario, engine, measure)
    return Plan(
        engine=engine,
        scenario=scenario,
        target=build(cfg.target, "target"),
        task=build(cfg.task, "task"),
        arms={BASELINE: arms.pop(BASELINE), **arms},
        decodings=decodings,
        acceptor=acceptor,
        measure=measure,
        rungs=rungs,
        tracker=build(cfg.tracker, "tracker"),
        replicate=config["replicate"],
        results=Path(config["results"]),
        config=config,
        overrides=overrides,
    )


def _remembering(name: str, arm: Method, config: Mapping[str, Any], scenario: Scenario) -> Method:
    """The arm with the memory that its own settings or the scenario's ask for."""
    if not isinstance(arm, Drafter):
        return arm
    narrow = arm.scope not in ("question", "process")
    if arm.remember and narrow:
        raise ConfigError(
            f"methods.{name}.remember={arm.remember}: the method keeps nothing from one call to the next (its"
            f" scope is {arm.scope}); leave it out"
        )
    if scenario.memory is None or arm.remember or narrow:
        return arm
    remembering: Method = build({**config["methods"][name], "remember": scenario.memory}, f"methods.{name}")
    return remembering


def _check_scenario(scenario: Scenario, engine: Engine, measure: Measure) -> None:
    if scenario.one_at_a_time and measure.batch_size > 1:
        raise ConfigError(
            f"measure.batch_size={measure.batch_size}: scenario={scenario.name} asks one question at a time,"
            " so that methods can remember it from one call to the next; type measure.batch_size=1"
        )
    if scenario.forces and not engine.forces:
        raise ConfigError(
            f"scenario.thinking.budget_share: engine={engine.name} cannot force the end of a thought; type"
            " scenario.thinking.budget_share=null"
        )


def _check_decodings(
    decodings: Mapping[str, DecodingParams], acceptor: Acceptor, arms: Mapping[str, Method]
) -> None:
    if not decodings:
        raise ConfigError("no decoding is chosen; type decoding=greedy, or decoding=[greedy,sampled]")
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
        for name, method in arms.items():
            if not params.greedy and not method.samples:
                raise ConfigError(
                    f"methods.{name}: only defined at temperature 0, but decodings.{params.name} has"
                    f" {params.temperature}; type decoding=greedy, or leave {name} out"
                )


def _check_switches(config: Mapping[str, Any]) -> None:
    replicate = config["replicate"]
    if replicate != "next" and not (isinstance(replicate, int) and replicate >= 0):
        raise ConfigError(f"replicate={replicate}: a number from 0, or `next`")
    if not isinstance(config["dry_run"], bool):
        raise ConfigError(f"dry_run={config['dry_run']}: true or false")


def _refuse_missing(node: Any, where: str) -> None:
    """Raise for the first `???` below `node`."""
    if isinstance(node, dict):
        for key, value in node.items():
            _refuse_missing(value, f"{where}.{key}" if where else str(key))
    elif node == "???":
        raise ConfigError(f"{where} has no value; type {where}=...")
