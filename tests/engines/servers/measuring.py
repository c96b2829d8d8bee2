"""Runs of a served engine, composed as on the command line."""

from __future__ import annotations

import json
from pathlib import Path

from hydra import compose, initialize_config_module

from harness.benchmark.experiment import Experiment
from harness.benchmark.plan import Plan, make_plan
from harness.benchmark.session import Session
from harness.store.records import Run
from harness.store.run_store import ResultStore, load_run
from harness.system.console import Console

LINES = [
    {"question_id": 1, "category": "a", "turns": ["one two"]},
    {"question_id": 2, "category": "b", "turns": ["four five"]},
    {"question_id": 3, "category": "b", "turns": ["six seven eight"]},
]
CONF = Path(__file__).parents[1] / "conf"


def plan_of(folder: Path, *overrides: str) -> Plan:
    file = folder / "prompts.jsonl"
    file.write_text("\n".join(map(json.dumps, LINES)))
    given = [
        f"hydra.searchpath=[file://{CONF}]",
        *("~experiment", "target=tiny", "task=local", f"task.path={file}", "tracker=none"),
        *("max_new_tokens=12", f"results={folder}", "measure=quick", "measure.num_warmup=0", *overrides),
    ]
    with initialize_config_module("conf", version_base="1.3"):
        return make_plan(compose("bench", overrides=given), given)


def measured(plan: Plan) -> Run:
    """Measure to the end; what is raised is raised here too."""
    (params,) = plan.decodings.values()
    try:
        return load_run(Experiment(Session(plan, Console()), params).run(ResultStore(plan.results / "runs")))
    finally:
        plan.engine.close()


def stored(plan: Plan) -> Run:
    """The only run of the folder, finished or not."""
    (folder,) = [one for one in (plan.results / "runs").iterdir() if one.is_dir() and one.name[0] != "."]
    return load_run(folder)
