"""What is wrong with one arm strikes its row and stops no other; what is wrong with vanilla strikes all."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.analysis.row import Row
from harness.analysis.summary import summarise
from harness.benchmark.experiment import Experiment
from harness.benchmark.session import Session
from harness.config import ConfigError
from harness.decoding.faults import LogitsNotFinite
from harness.reports import tables
from harness.store.records import Run
from harness.store.run_store import ResultStore, load_run
from harness.system.console import Console
from harness.target.random_target import TinyTarget
from methods.ngram import NGram
from tests.benchmark.test_experiment import measured, plan_of
from tests.support.builders import make_run

ACCEPTANCE = ("measure=acceptance", "measure.batch_size=1")


def rows_of(run: Run) -> dict[str, Row]:
    return {row.method: row for row in summarise(run)}


def line_of(run: Run, method: str) -> str:
    headers, lines = tables.console_table(summarise(run))
    (line,) = [line for line in lines if line[headers.index("method")].strip("~") == method]
    return " | ".join(line)


def spoil_ngram(monkeypatch: pytest.MonkeyPatch, block: str, tokens: Any) -> None:
    """Have it draft `tokens` from this block on; "" from the warm-up on."""
    propose, measure, spoiled = NGram.propose_one, Experiment._measure, [not block]

    def propose_one(self: NGram, context: Sequence[int], state: Any, room: int) -> Sequence[int]:
        return tokens if spoiled[0] else propose(self, context, state, room)  # type: ignore[no-any-return]

    def measured_block(self: Experiment, run: Any, conversations: Any) -> None:
        spoiled[0] |= conversations[0].id == block
        measure(self, run, conversations)

    monkeypatch.setattr(NGram, "propose_one", propose_one)
    monkeypatch.setattr(Experiment, "_measure", measured_block)


@pytest.mark.parametrize("block", ["", "2"], ids=["from the start", "later"])
def test_an_arm_with_ids_that_do_not_exist_fails_alone_and_by_name(
    block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil_ngram(monkeypatch, block, [300])
    plan = plan_of(tmp_path, *ACCEPTANCE, "method=[ngram,suffix]")
    run = load_run(measured(plan, tmp_path))
    assert run.finished
    assert {record.arm for record in run.records} >= {"vanilla", "suffix"}
    assert [(one.kind, one.arm) for one in run.failures] == [("illegal-draft", "ngram")]
    found = rows_of(run)
    assert found["suffix"].verdict == found["vanilla"].verdict == "identical"
    assert found["suffix"].num_prompts == 3
    assert not found["suffix"].failures
    assert found["ngram"].failures
    assert "proposed the token 300; the vocabulary is 0..258" in line_of(run, "ngram")
    if block:
        assert found["ngram"].verdict == "broken"
        assert "~~" in line_of(run, "ngram")
    else:
        assert found["ngram"].failed


def test_a_failed_arm_stays_out_when_the_run_is_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil_ngram(monkeypatch, "2", [None])
    plan = plan_of(tmp_path, *ACCEPTANCE, "method=[ngram,suffix]")
    right = Experiment._measure

    def interrupted(self: Experiment, run: Any, block: Any) -> None:
        if block[0].id == "3":
            raise KeyboardInterrupt
        right(self, run, block)

    with monkeypatch.context() as patch:
        patch.setattr(Experiment, "_measure", interrupted)
        with pytest.raises(KeyboardInterrupt):
            measured(plan, tmp_path)
    run = load_run(measured(plan, tmp_path))
    assert run.finished
    assert [(one.kind, one.arm) for one in run.failures] == [("error", "ngram")]
    assert sum(record.arm == "ngram" for record in run.records) < 4
    assert sum(record.arm == "suffix" for record in run.records) == 4


def spoil(session: Session) -> None:
    reference = session.engine.reference
    assert reference is not None
    with torch.no_grad():
        reference.model.model.norm.weight[3] = torch.nan


def test_a_target_that_is_not_finite_gives_no_number_at_all(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, *ACCEPTANCE)
    session = Session(plan, Console())
    spoil(session)
    store = ResultStore(tmp_path / "runs")
    with pytest.raises(LogitsNotFinite):
        Experiment(session, plan.decodings["greedy"]).run(store)
    (folder,) = [path for path in (tmp_path / "runs").iterdir() if path.is_dir()]
    run = load_run(folder)
    assert [(one.kind, one.arm) for one in run.failures] == [("not-finite", "vanilla")]
    assert all(row.failed and row.failures for row in summarise(run))
    assert "NaN or infinite" in line_of(run, "ngram")


def test_a_target_that_stops_being_finite_strikes_every_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of(tmp_path, *ACCEPTANCE)
    right = Experiment._measure

    def spoiling(self: Experiment, run: Any, block: Any) -> None:
        if block[0].id == "2":
            spoil(self.session)
        right(self, run, block)

    monkeypatch.setattr(Experiment, "_measure", spoiling)
    with pytest.raises(LogitsNotFinite):
        measured(plan, tmp_path)
    (folder,) = [path for path in (tmp_path / "runs").iterdir() if path.is_dir()]
    run = load_run(folder)
    assert run.records
    for method in ("vanilla", "ngram"):
        assert rows_of(run)[method].verdict == "broken"
        assert re.search(r"~~1~~ \| .*NaN or infinite", line_of(run, method))


@pytest.mark.parametrize(
    ("given", "place"),
    [
        (["method=[eagle2]", "methods.eagle2.head=random"], r"eagle2"),
        (["method=[hybrid]", "methods.hybrid.second.head=random"], r"hybrid\.second"),
    ],
)
def test_a_head_that_is_not_finite_is_refused_at_load(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: list[str], place: str
) -> None:
    import methods.eagle.drafter as eagle

    right = eagle.random_head

    def spoiled(**given: Any) -> Any:
        loaded = right(**given)
        with torch.no_grad():
            for parameter in loaded.head.parameters():
                parameter.fill_(torch.nan)
        return loaded

    monkeypatch.setattr(eagle, "random_head", spoiled)
    plan = plan_of(tmp_path, *ACCEPTANCE, *given)
    with pytest.raises(ConfigError, match=rf"methods\.{place}\.head: \d+ of \d+ weights in .* are NaN"):
        Session(plan, Console())


def test_the_tiny_target_is_finite(tmp_path: Path) -> None:
    """So that the faults above are those that were put in."""
    assert all(bool(p.isfinite().all()) for p in TinyTarget().load(lambda _: None).model.parameters())


def test_arguments_that_the_locale_cannot_read_are_recorded_with_a_sign_for_each_byte(tmp_path: Path) -> None:
    typed = ["task.name=\udce4\udcb8\udcad", "x=\u4e2d"]
    manifest = replace(make_run([]).manifest, overrides=typed)
    with ResultStore(tmp_path / "runs").open_run(manifest) as run:
        folder = run.folder
    assert load_run(folder).manifest.overrides == ["task.name=???", typed[1]]
