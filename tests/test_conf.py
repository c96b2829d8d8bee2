"""conf/: every option of every group composes into the benchmark and builds, every experiment as well."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest
from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import MissingConfigException
from hydra.utils import get_class
from omegaconf import OmegaConf

import conf
from harness.benchmark.plan import Plan, make_plan

CONF = Path(conf.__file__).parent
BUILT_ELSEWHERE = {"target", "task", "method", "hydra", "experiment", "data", "recorded", "tree", "policy"}
"""Groups of their own tests, here or with their classes."""
GROUPS = sorted(
    path.name
    for path in CONF.iterdir()
    if path.is_dir() and path.name[0] != "_" and path.name not in BUILT_ELSEWHERE
)


TARGETS = sorted(
    {name for file in CONF.rglob("*.yaml") for name in re.findall(r"_target_: *([\w.]+)", file.read_text())}
)


@pytest.mark.parametrize("target", TARGETS)
def test_every_class_that_a_yaml_names_is_where_it_says(target: str) -> None:
    """A text does not follow a class to another module. A method's package exports its class."""
    cls = get_class(target)
    module, _, name = target.rpartition(".")
    assert cls.__qualname__ == name
    assert cls.__module__ == module or (
        module.startswith("methods.") and cls.__module__ == f"{module}.drafter"
    )


def stems(group: str) -> list[str]:
    return sorted(file.stem for file in (CONF / group).glob("*.yaml"))


def plan_of(*overrides: str) -> Plan:
    with initialize_config_module("conf", version_base="1.3"):
        return make_plan(compose("bench", overrides=list(overrides)), list(overrides))


@pytest.mark.parametrize(("group", "option"), [(group, stem) for group in GROUPS for stem in stems(group)])
def test_every_option_composes_and_builds(group: str, option: str) -> None:
    plan = plan_of("~experiment", f"{group}={[option] if group == 'decoding' else option}")
    assert group != "decoding" or list(plan.decodings) == [option]


@pytest.mark.parametrize("tree", stems("tree"))
@pytest.mark.parametrize("policy", stems("policy"))
def test_every_tree_and_policy_is_chosen_by_its_name_and_recorded_whole(tree: str, policy: str) -> None:
    plan = plan_of(
        *("~experiment", "method=[ngram,eagle2]"),
        *(f"methods.eagle2.tree={tree}", f"methods.ngram.policy={policy}"),
    )
    methods = plan.config["methods"]
    assert methods["eagle2"]["tree"] == OmegaConf.load(CONF / "tree" / f"{tree}.yaml")
    assert methods["ngram"]["policy"] == OmegaConf.load(CONF / "policy" / f"{policy}.yaml")
    assert type(plan.arms["ngram"].policy) is get_class(methods["ngram"]["policy"]["_target_"])


def test_all_methods_compose_into_one_run() -> None:
    methods = [stem for stem in stems("method") if stem != "vanilla"]
    assert list(plan_of("~experiment", f"method=[{','.join(methods)}]", "methods.rest.datastore=x").arms) == [
        *["vanilla", *methods]
    ]


@pytest.mark.parametrize("name", stems("experiment"))
def test_every_cell_of_every_experiment_builds_with_a_head_for_every_method(name: str) -> None:
    file = OmegaConf.load(CONF / "experiment" / f"{name}.yaml")
    swept = OmegaConf.select(file, "hydra.sweeper.params") or {}
    assert set(swept.get("task", "").split(",")) <= {"", *stems("task")}
    needs_path = re.search("/task: (spec_bench|spectts|speed_bench)", str(file.defaults).replace("'", ""))
    sweeps = {key: str(swept.get(key, "")).split(",") for key in ("target", "panel")}
    for values in itertools.product(*sweeps.values()):
        chosen = [f"{key}={value}" for key, value in zip(sweeps, values, strict=True) if value]
        plan = plan_of(f"experiment={name}", *chosen, *(["task.path=nowhere.jsonl"] if needs_path else []))
        assert all(drafter.head for drafter in plan.arms.values() if hasattr(drafter, "head"))


PANELS = {
    "multi_round_greedy": ("multi_round", 0.0),
    "multi_round_sampled": ("multi_round", 0.6),
    "best_of_n_sampled": ("best_of_n", 0.6),
}


@pytest.mark.parametrize("name", ["spectts", "spectts_quick"])
def test_the_panels_of_spectts_are_the_papers(name: str) -> None:
    file = OmegaConf.load(CONF / "experiment" / f"{name}.yaml")
    swept = OmegaConf.select(file, "hydra.sweeper.params")
    assert swept.panel.split(",") == list(PANELS) == sorted(stems("panel"), key=list(PANELS).index)
    for panel, (scenario, temperature) in PANELS.items():
        plan = plan_of(
            f"experiment={name}", f"panel={panel}", "task.path=x" if name == "spectts" else "dry_run=true"
        )
        (params,) = plan.decodings.values()
        assert (plan.scenario.name, params.temperature) == (scenario, temperature)
        assert (params.top_k, params.top_p) == (0, 1.0)
        if panel == "best_of_n_sampled":
            assert plan.config["scenario"]["num_samples"] == 4
            assert plan.config["scenario"]["bon_prompt"] == "accumulate"
        assert plan.rungs == {}
        if name == "spectts":
            trees = [plan.arms["eagle3"].tree, plan.arms["hybrid"].second.tree]  # type: ignore[union-attr]
            assert trees[0] == trees[1]
            assert (trees[0].total_token, trees[0].depth, trees[0].top_k) == (60, 5, 10)


def test_spectts_quick_is_small_enough_for_twenty_minutes_of_two_cores() -> None:
    """At the 12 tokens a second of a slow machine, with two of the minutes left for loading and compiling."""
    num_tokens = 0
    for panel in PANELS:
        plan = plan_of("experiment=spectts_quick", f"panel={panel}")
        (params,) = plan.decodings.values()
        passes = len(params.seeds) * sum(plan.repeats(params).values())
        num_calls = sum(map(plan.scenario.num_calls, plan.task.load()))
        num_warmup = plan.measure.num_warmup * plan.scenario.num_calls(plan.task.load()[0]) * len(plan.arms)
        num_tokens += passes * num_calls * params.max_new_tokens + 32 * num_warmup
    assert num_tokens / 12 < 18 * 60


@pytest.mark.parametrize("file", sorted((CONF / "target").glob("*.yaml")), ids=lambda file: file.stem)
def test_a_target_states_only_what_differs_from_the_defaults(file: Path) -> None:
    assert len(file.read_text(encoding="utf-8").splitlines()) <= 12
    assert OmegaConf.load(file).defaults


def test_shared_defaults_of_targets_are_no_targets() -> None:
    shared = stems("")
    assert {"target_base", "target_base_random"} <= set(shared)
    with initialize_config_module("conf", version_base="1.3"):
        offered = GlobalHydra.instance().config_loader().get_group_options("target")
        assert {"hub", "tiny"} <= set(offered)
        assert not [name for name in offered if "base" in name]
        with pytest.raises(MissingConfigException, match="target/target_base"):
            compose("bench", overrides=["target=target_base"])
