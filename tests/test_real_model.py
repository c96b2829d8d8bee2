"""Our loop on a real model, where its weights are at hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.benchmark.experiment import Experiment
from harness.benchmark.session import Session
from harness.store.run_store import ResultStore, load_run
from harness.system.console import Console
from harness.target.smollm2 import converted_folder
from tests.test_conf import plan_of


@pytest.mark.real_model
@pytest.mark.skipif(not converted_folder().is_dir(), reason="the embedded target is not converted here")
def test_the_loop_writes_what_vanilla_writes(tmp_path: Path) -> None:
    plan = plan_of(
        *("~experiment", "target=smollm2_135m", "task=smoke", "task.ids=[math-1,extraction-1]"),
        *("measure=acceptance", "max_new_tokens=8", "tracker=none", f"results={tmp_path}"),
    )
    session = Session(plan, Console())
    run = load_run(Experiment(session, plan.decodings["greedy"]).run(ResultStore(tmp_path / "runs")))
    assert len(run.records) == 2 * len(plan.arms)
    assert {len(record.output_ids) for record in run.records} == {8}
    assert {record.verdict.kind for record in run.records if record.verdict} <= {"identical", "tie"}
