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

pytestmark = [
    pytest.mark.real_model,
    pytest.mark.skipif(not converted_folder().is_dir(), reason="the embedded target is not converted here"),
]


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


def test_what_every_shipped_head_drafts_is_kept_now_and_then(tmp_path: Path) -> None:
    heads = ["eagle2", "eagle3", "gto", "fasteagle", "specblock", "dflash", "dspark", "ddtree"]
    plan = plan_of(
        *("~experiment", "target=smollm2_135m", "task=smoke", "task.ids=[math-1]"),
        f"method=[{','.join(heads)}]",
        *("measure=acceptance", "max_new_tokens=24", "tracker=none", f"results={tmp_path}"),
    )
    run = load_run(Experiment(Session(plan, Console()), plan.decodings["greedy"]).run(ResultStore(tmp_path)))
    assert {record.verdict.kind for record in run.records if record.verdict} <= {"identical", "tie"}
    assert {record.arm for record in run.records if sum(record.accepted) > 2} == set(heads)
