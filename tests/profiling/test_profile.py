"""Profiling: every cell is measured, shapes are chosen only where they pay, and a run finds its own table."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_module

from harness.analysis.summary import summarise
from harness.benchmark.cost_job import drafting_cost, monotone_grid, run_costs
from harness.config import ConfigError
from harness.costs.table import load_tables
from harness.drafting.draft import Draft
from harness.drafting.trees import DynamicTree
from harness.profiling.profile import Profile
from harness.profiling.step_memory import StepMemory
from harness.profiling.step_timing import _StepTimer, cheapest_step, cheapest_widths, time_steps
from harness.store.run_store import load_run
from harness.target.model import Target
from methods.eagle import Eagle
from methods.ngram import NGram
from tests.benchmark.test_experiment import measured, plan_of
from tests.support.targets import engine, tiny_model

PROFILE = Profile(batches=(1, 2), contexts=(8, 16), tokens=(1, 3, 6), num_warmup=1, num_repeats=2)
TINY = (
    *("costs.batches=[1]", "costs.contexts=[16,128]", "costs.tokens=[1,4,16]"),
    *("costs.num_warmup=0", "costs.num_repeats=1"),
)


def quiet(_: str) -> None:
    """Nobody listens."""


def test_a_draft_is_padded_only_to_a_width_that_is_clearly_cheaper() -> None:
    assert cheapest_widths([1.0, 3.0, 2.0, 1.95, 4.0, 3.0]) == [0, 3, 2, 3, 5, 5]
    assert cheapest_widths([9.0, 1.0, 2.0]) == [0, 1, 2]


def test_every_width_is_timed() -> None:
    target = Target(tiny_model("llama"), cache="auto")
    found = time_steps(target, num_rows=2, widths=range(5), num_context=8, num_repeats=1)
    assert set(found.by_step) == set(target.steps.kinds) == {"dynamic", "static"}
    for width, (step, spent) in enumerate(zip(found.steps, found.verify_ns, strict=True)):
        assert 0 < spent == found.by_step[step][width] < 60e9


def test_a_step_is_chosen_over_a_simpler_one_only_where_it_is_clearly_faster() -> None:
    clock = {"dynamic": [1.00, 2.0, 3.0], "static": [0.97, 1.0, 3.5]}
    assert [cheapest_step(clock, width) for width in range(3)] == ["dynamic", "static", "dynamic"]


def test_a_width_that_was_not_tried_takes_the_step_of_the_next_one() -> None:
    found = time_steps(
        Target(tiny_model("llama"), cache="auto"), 1, widths=[0, 3], num_context=8, num_repeats=1
    )
    assert found.steps[1] == found.steps[2] == found.steps[3]
    assert [math.isinf(spent) for spent in found.verify_ns] == [False, True, True, False]
    assert cheapest_widths(found.verify_ns) == [0, 3, 3, 3]


class Clocked(_StepTimer):
    """Forwards take as long as `ns` says, by kind of step, plus their number of tokens; they are counted."""

    ns: ClassVar[dict[str, int]] = {}
    timed: ClassVar[list[tuple[str, int]]] = []

    def _spent(self, width: int) -> int:
        (step,) = self._target.steps._by_width
        self.timed.append((step, width))
        return self.ns[step] + width


def test_a_recalled_choice_is_timed_alone_until_it_is_no_longer_right(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harness.profiling.step_memory.programs_folder", lambda: tmp_path)
    monkeypatch.setattr("harness.profiling.step_timing._StepTimer", Clocked)
    target, widths = Target(tiny_model("llama"), cache="auto"), range(9)

    def steps(dynamic: int, static: int, num_rows: int = 1) -> tuple[set[str], int]:
        Clocked.ns, Clocked.timed = {"dynamic": dynamic, "static": static}, []
        memory = StepMemory(target, num_rows, widths)
        found = time_steps(target, num_rows, widths, num_context=8, num_repeats=3, memory=memory)
        assert all(map(math.isfinite, found.verify_ns))
        return set(found.steps), len(Clocked.timed)

    everything, checked = 2 * 9 * 3, (9 + 3) * 3
    assert steps(2000, 1000) == ({"static"}, everything)
    assert steps(2000, 1000) == ({"static"}, checked)
    assert steps(1000, 1100) == ({"static"}, checked), "noise changes no choice"
    assert steps(1000, 2000) == ({"dynamic"}, checked + everything)
    assert steps(1000, 2000) == ({"dynamic"}, checked)
    assert steps(1000, 2000, num_rows=2) == ({"dynamic"}, everything), "another batch is another choice"
    for damaged in ("", "[]", '["compiled"]', "{}"):
        for file in tmp_path.glob("steps-*.json"):
            file.write_text(damaged)
        assert steps(1000, 2000) == ({"dynamic"}, everything)


def test_a_kind_that_was_chosen_for_some_widths_alone_is_checked_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As noise may have it: half of the widths are not checked otherwise."""
    monkeypatch.setattr("harness.profiling.step_memory.programs_folder", lambda: tmp_path)
    monkeypatch.setattr("harness.profiling.step_timing._StepTimer", Clocked)
    target, widths = Target(tiny_model("llama"), cache="auto"), range(9)
    memory = StepMemory(target, 1, widths)
    memory.keep(["static"] * 4 + ["dynamic", "dynamic"] + ["static"] * 3)
    Clocked.ns = {"dynamic": 2000, "static": 1000}
    found = time_steps(target, 1, widths, num_context=8, memory=memory)
    assert set(found.steps) == {"static"}
    assert memory.recall() == ["static"] * 9


@pytest.mark.parametrize("code", ["old", "new"])
def test_a_choice_is_not_recalled_by_other_code(
    code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harness.profiling.step_memory.programs_folder", lambda: tmp_path)
    target, widths = Target(tiny_model("llama"), cache="auto"), range(3)
    monkeypatch.setattr("harness.profiling.step_memory.runtime_code", lambda: "old")
    StepMemory(target, 1, widths).keep(["static"] * 3)
    monkeypatch.setattr("harness.profiling.step_memory.runtime_code", lambda: code)
    assert StepMemory(target, 1, widths).recall() == (["static"] * 3 if code == "old" else None)


@pytest.mark.parametrize("chain", [True, False])
def test_a_padded_draft_is_the_same_draft(chain: bool) -> None:
    tokens, size = torch.tensor([[4, 5, 6], [7, 8, 9]]), torch.tensor([3, 1])
    parents = torch.tensor([[-1, 0, 0], [-1, -1, -1]])
    draft = Draft.chain(tokens, size) if chain else Draft(tokens=tokens, parents=parents, size=size)
    padded = draft.padded(5)
    padded.check(10)
    assert padded.width == 5
    assert torch.equal(padded.size, size)
    assert torch.equal(padded.ancestors[:, :3, :3], draft.ancestors)
    assert torch.equal(padded.ancestors[:, 3:], torch.eye(5, dtype=torch.bool).expand(2, 5, 5)[:, 3:])
    assert draft.padded(2) is draft


def test_every_cell_of_a_target_is_measured_and_the_table_rises() -> None:
    target = Target(tiny_model("llama"))
    timings = PROFILE.target(target, quiet)
    for seconds in (timings.forward, timings.settle):
        assert seconds.shape == (2, 2, 3)
        assert (seconds > 0).all()
        grid = monotone_grid(PROFILE, seconds)
        assert list(grid.axes.values()) == [PROFILE.batches, PROFILE.contexts, PROFILE.tokens]
        assert (np.diff(grid.values, axis=2) > 0).all()
        assert all((np.diff(grid.values, axis=axis) >= 0).all() for axis in (0, 1))
    assert 0 <= timings.spread < 100
    assert target.cache.lengths == [8, 8], "every round was undone"


@pytest.mark.parametrize("has_model", [True, False])
def test_rounds_of_a_drafter_are_measured_and_calls_of_its_model_where_it_has_one(has_model: bool) -> None:
    tree = DynamicTree(total_token=8, depth=2, top_k=3)
    drafter = Eagle(architecture="eagle3", head="random", tree=tree) if has_model else NGram()
    loop = engine()
    drafter.bind(loop.target)
    timings = PROFILE.drafter(loop, drafter)
    assert (timings.round > 0).all()
    cost = drafting_cost(PROFILE, timings, {"any": 1})
    assert cost.settings == {"any": 1}
    assert (cost.round.values >= timings.round).all()
    assert cost.round.values.shape == (2, 2)
    assert (cost.call is not None) == has_model
    if cost.call is not None:
        assert cost.call.values.shape == (2, 2, 3)
        assert (cost.call.values > 0).all()
        assert (np.diff(cost.call.values, axis=2) > 0).all()


def test_a_context_without_room_is_refused_with_one_that_fits() -> None:
    with pytest.raises(ConfigError, match=r"costs\.contexts=\[8, 16\].*costs\.contexts=\[\.\.\.,11\]"):
        PROFILE.check(16 + 12 - 5)
    PROFILE.check(16 + 12)
    with pytest.raises(ValueError, match="each above the one before"):
        Profile(tokens=(4, 2))


def test_a_run_finds_the_table_of_its_machine_and_target(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["target=tiny", "method=[ngram]", *TINY, f"results={tmp_path}"]
    with initialize_config_module("conf", version_base="1.3"):
        run_costs(compose("cost", overrides=given))
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told["drafters"] == ["ngram"]
    assert Path(told["table"]).is_file()
    plan = plan_of(tmp_path, "measure=quick", "+measure.bandwidth_gib=0.01", "ladder=none")
    run = load_run(measured(plan, tmp_path))
    for row in summarise(run, load_tables(tmp_path)):
        assert row.speedup_predicted > 0
        assert row.speedup_oracle_length > 0
