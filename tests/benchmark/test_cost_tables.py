"""Costs come from a table of this device and target, and are measured before the run where there is none."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_module

from harness.benchmark.cost_job import run_costs
from harness.benchmark.experiment import Experiment
from harness.benchmark.session import Session
from harness.costs.table import COSTS, load_tables
from harness.store.run_store import ResultStore, load_run
from harness.system.console import Console
from tests.benchmark.test_experiment import plan_of

WEIGHING = ("measure=acceptance", "methods.ngram.policy=cost_aware")
SMALL = (
    *("target=tiny", "costs.batches=[1,4]", "costs.contexts=[16,256]", "costs.tokens=[1,4]"),
    *("costs.num_warmup=1", "costs.num_repeats=2"),
)


def session_of(tmp_path: Path, *overrides: str) -> tuple[Session, str]:
    """A session, and what it told."""
    told = io.StringIO()
    session = Session(plan_of(tmp_path, *overrides), Console(told))
    return session, " ".join(told.getvalue().split())


def policy_of(session: Session) -> Any:
    arm: Any = session.plan.arms["ngram"]
    return arm.policy


@pytest.fixture
def with_table(tmp_path: Path) -> Path:
    with initialize_config_module("conf", version_base="1.3"):
        run_costs(compose("cost", overrides=[*SMALL, f"results={tmp_path}"]))
    return tmp_path


def test_without_a_table_costs_are_measured_before_the_run_and_told(tmp_path: Path) -> None:
    session, told = session_of(tmp_path, *WEIGHING)
    assert "no table in" in told
    assert "python -m harness.cost target=tiny" in told
    assert "costs for ngram were ready in" in told
    assert session.cost_table is None
    assert len(policy_of(session).costs.verify(0)) == 32


def test_nothing_is_looked_for_where_no_arm_weighs_costs(with_table: Path) -> None:
    session, told = session_of(with_table, "measure=acceptance")
    assert "what a token costs" not in told
    assert session.cost_table is None


def test_a_table_of_this_device_is_weighed_and_named_in_the_manifest(with_table: Path) -> None:
    session, told = session_of(with_table, *WEIGHING)
    (table,) = load_tables(with_table)
    assert f"as measured in {table.file}" in told
    curve = table.curve(4, 256)
    assert policy_of(session).costs.verify(0) == pytest.approx(curve[1:] / curve[0], rel=1e-3)
    params = session.plan.decodings["greedy"]
    run = load_run(Experiment(session, params).run(ResultStore(with_table / "runs")))
    assert run.manifest.provenance["cost_table"]["created"] == table.made["created"]


@pytest.mark.parametrize(("part", "key"), [("device", "cpu"), ("target", "dtype"), ("software", "torch")])
def test_a_table_of_something_else_is_named_and_not_used(with_table: Path, part: str, key: str) -> None:
    (file,) = (with_table / COSTS).iterdir()
    data = json.loads(file.read_text())
    data["identity"][part][key] = "another"
    file.write_text(json.dumps(data))
    session, told = session_of(with_table, *WEIGHING)
    assert f"{part}.{key} is 'another' there and" in told
    assert session.cost_table is None


def test_a_table_without_this_batch_is_not_used(with_table: Path) -> None:
    session, told = session_of(with_table, *WEIGHING, "measure.batch_size=8")
    assert "has batches 1 to 4, not 8" in told
    assert session.cost_table is None
