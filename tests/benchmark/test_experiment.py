"""One cell, end to end, on the tiny target: records, verdicts, resume."""

from __future__ import annotations

import json
import re
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_module

from harness.analysis.summary import summarise
from harness.benchmark.experiment import Experiment
from harness.benchmark.plan import Plan, make_plan
from harness.benchmark.scenarios.multi_turn import MultiTurn
from harness.benchmark.session import Session
from harness.config import ConfigError
from harness.decoding.acceptance import Accepted, Coupled
from harness.reports import formatting
from harness.runtime.programs import blocks
from harness.store.run_store import ResultStore, load_run
from harness.system.console import Console
from harness.tasks.conversation import Message
from harness.tasks.overlap import Fingerprints
from methods.ngram import NGram

LINES = [
    {"question_id": 1, "category": "a", "turns": ["one two one two one", "and three"]},
    {"question_id": 2, "category": "b", "turns": ["four five six four five"]},
    {"question_id": 3, "category": "b", "turns": ["seven"]},
]


def plan_of(tmp_path: Path, *overrides: str) -> Plan:
    file = tmp_path / "prompts.jsonl"
    file.write_text("\n".join(map(json.dumps, LINES)))
    given = [
        "~experiment",
        "target=tiny",
        "task=local",
        f"task.path={file}",
        "method=[ngram]",
        "tracker=none",
        "max_new_tokens=12",
        f"results={tmp_path}",
        *overrides,
    ]
    with initialize_config_module("conf", version_base="1.3"):
        return make_plan(compose("bench", overrides=given), given)


def measured(plan: Plan, tmp_path: Path, decoding: str = "greedy") -> Path:
    session = Session(plan, Console())
    return Experiment(session, plan.decodings[decoding]).run(ResultStore(tmp_path / "runs"))


@pytest.mark.parametrize("decoding", ["greedy", "sampled"])
def test_a_quick_run_records_every_arm_turn_and_repeat(tmp_path: Path, decoding: str) -> None:
    plan = plan_of(tmp_path, "measure=quick", f"decoding={decoding}", "+measure.bandwidth_gib=0.01")
    run = load_run(measured(plan, tmp_path, decoding))
    repeats = 2 if decoding == "greedy" else 1
    rungs = 2 if decoding == "greedy" else 0
    assert run.finished
    assert len(run.records) == 4 * (2 + repeats + rungs)
    vanilla = next(row for row in summarise(run) if row.method == "vanilla")
    assert vanilla.aa_floor >= 0, "vanilla is measured twice at any temperature, so that its floor is known"
    assert {record.verdict.kind for record in run.records if record.verdict} == {"identical"}
    assert run.probes[0].read_bandwidth > 0
    assert sum(null.num_differing for null in run.nulls) == 0
    assert all(record.total_ns > 0 for record in run.records)


def test_a_program_that_was_compiled_while_the_clock_ran_fails_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The compiler is away: a step is a program as it is, and another one appears whenever somebody looks."""
    number = count()
    # No wrapper of a compiler, such as ccache, which torch would call to build our kernel.
    monkeypatch.setattr(
        "harness.runtime.programs.step.shutil.which", lambda name: name if name == "g++" else None
    )
    monkeypatch.setattr("torch.compile", lambda step, **_: step)
    monkeypatch.setattr(blocks, "program", lambda call, *_: lambda inputs: [call(inputs)])
    monkeypatch.setattr("harness.runtime.verify_steps.num_programs", lambda: next(number))
    plan = plan_of(tmp_path, "measure=quick", "target.compile=true", "+measure.bandwidth_gib=0.01")
    assert plan.target.baseline == "strong"
    with pytest.raises(ConfigError, match=r"1 programs were compiled while .* was timed"):
        measured(plan, tmp_path)


@pytest.mark.parametrize("history", ["live", "frozen"])
def test_an_acceptance_run_in_batches_is_untimed_and_identical(tmp_path: Path, history: str) -> None:
    plan = plan_of(tmp_path, "measure=acceptance", "measure.batch_size=2", f"task.history={history}")
    run = load_run(measured(plan, tmp_path))
    assert len(run.records) == 8
    assert {record.verdict.kind for record in run.records if record.verdict} == {"identical"}
    assert sum(record.total_ns for record in run.records) == 0


def test_a_run_says_what_it_takes_at_most_before_it_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    measured(plan_of(tmp_path, "measure=acceptance", "measure.num_warmup=1"), tmp_path)
    told = capsys.readouterr().err
    said = re.search(r"8 generations; at the speed of the warm-up at most \d+ s", told)
    assert said is not None
    assert said.start() < told.index("run tiny.")


def test_an_interrupted_run_goes_on_without_loss_or_doubles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of(tmp_path, "measure=acceptance", "measure.batch_size=1")
    right = Experiment._measure

    def interrupted(self: Experiment, run, block):  # type: ignore[no-untyped-def]
        if block[0].id == "2":
            raise KeyboardInterrupt
        right(self, run, block)

    monkeypatch.setattr(Experiment, "_measure", interrupted)
    with pytest.raises(KeyboardInterrupt):
        measured(plan, tmp_path)
    (folder,) = [path for path in (tmp_path / "runs").iterdir() if path.is_dir()]
    assert [failure.kind for failure in load_run(folder).failures] == ["interrupted"]
    monkeypatch.setattr(Experiment, "_measure", right)
    run = load_run(measured(plan, tmp_path))
    places = [(record.arm, record.conversation, record.turn) for record in run.records]
    assert len(places) == len(set(places)) == 8
    assert run.finished


def test_a_wrong_acceptor_comes_out_broken_in_the_records(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = Coupled.accept

    def wrong(self, logits, draft, sampler, start):  # type: ignore[no-untyped-def]
        accepted = right(self, logits, draft, sampler, start)
        if not draft.width:
            return accepted
        return Accepted(accepted.length, accepted.path, (accepted.token + 1) % logits.shape[-1])

    monkeypatch.setattr(Coupled, "accept", wrong)
    run = load_run(measured(plan_of(tmp_path, "measure=acceptance"), tmp_path))
    kinds = {record.verdict.kind for record in run.records if record.arm == "ngram" and record.verdict}
    assert "broken" in kinds


def test_with_an_uncoupled_acceptor_only_vanilla_is_compared_with_itself(tmp_path: Path) -> None:
    plan = plan_of(
        tmp_path,
        *("accept=rejection", "decoding=sampled", "measure=quick", "+measure.bandwidth_gib=0.01"),
        *("measure.sampled_repeats=2", "measure.sampled_rung_repeats=1", "max_new_tokens=6"),
    )
    run = load_run(measured(plan, tmp_path, "sampled"))
    kinds = {(record.arm == "vanilla", record.verdict.kind) for record in run.records if record.verdict}
    assert kinds == {(True, "identical"), (False, "unpaired")}


def test_prompts_that_leave_no_room_are_refused_by_name(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, "measure=acceptance", "target.max_context=4")
    with pytest.raises(ConfigError, match=r"conversation 1.*max_context"):
        measured(plan, tmp_path)


def test_a_task_file_with_a_bad_line_is_named_with_its_line(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    (tmp_path / "prompts.jsonl").write_text('{"question_id": 1, "turns": ["x"]}\n{"turns": 3}\n')
    with pytest.raises(ConfigError, match=r"prompts\.jsonl:2"):
        plan.task.load()


def test_prompts_are_rendered_once_and_all_arms_are_asked_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rendered: list[list[Message]] = []

    def drifting(_: Any, messages: list[Message], __: Any) -> list[int]:
        rendered.append(messages)
        return [65 + len(rendered) % 60, 66, 67]  # a template that writes something else each time

    monkeypatch.setattr("harness.benchmark.session.render", drifting)
    run = load_run(measured(plan_of(tmp_path, "measure=acceptance"), tmp_path))
    prompts = {(one.conversation, one.turn): set[str]() for one in run.records}
    for one in run.records:
        prompts[one.conversation, one.turn].add(one.prompt_hash)
    assert all(len(hashes) == 1 for hashes in prompts.values())
    assert len({tuple(messages) for messages in rendered}) == len(rendered)
    assert run.manifest.provenance["template_time"] == "2024-07-26T00:00:00"


def test_token_ids_need_no_chat_template(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.target.random_target._TEMPLATE", None)
    file = tmp_path / "ids.jsonl"
    file.write_text('{"id": 1, "input_ids": [5, 6, 7, 5, 6]}\n{"id": 2, "input_ids": [9, 9, 9]}')
    plan = plan_of(
        tmp_path, "task=token_ids", f"task.path={file}", "measure=acceptance", "measure.num_warmup=2"
    )
    run = load_run(measured(plan, tmp_path))
    assert {one.conversation for one in run.records} == {"1", "2"}


@pytest.mark.parametrize("history", ["live", "frozen"])
def test_a_conversation_that_outgrows_the_context_ends_and_the_run_does_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], history: str
) -> None:
    longest = max(len(LINES[0]["turns"][0]), 20)  # type: ignore[index]
    plan = plan_of(
        tmp_path,
        *("measure=acceptance", f"task.history={history}", f"target.max_context={longest + 55}"),
        "measure.num_warmup=0",
    )
    run = load_run(measured(plan, tmp_path))
    assert run.finished
    assert {(one.conversation, one.turn) for one in run.records} == {("1", 0), ("2", 0), ("3", 0)}
    assert {one.verdict.kind for one in run.records if one.verdict} == {"identical"}
    assert "conversation 1 ends after 1 of 2 turns: the next prompt leaves no room" in capsys.readouterr().err


def test_a_turn_that_only_another_arm_has_room_for_is_unpaired(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of(tmp_path, "measure=acceptance", "measure.num_warmup=0")
    right = MultiTurn.play

    def play(self: MultiTurn, runner: Any, one_pass: Any, block: Any, frozen: Any = None) -> Any:
        made = right(self, runner, one_pass, block, frozen)
        return [one for one in made if one.call.turn == 0 or one_pass.player.name != "vanilla"]

    monkeypatch.setattr(MultiTurn, "play", play)
    run = load_run(measured(plan, tmp_path))
    kinds = {(one.arm, one.turn): one.verdict.kind for one in run.records if one.verdict}
    assert kinds == {("vanilla", 0): "identical", ("ngram", 0): "identical", ("ngram", 1): "unpaired"}


def test_prompts_that_a_head_was_trained_on_are_counted_and_mark_its_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen = "this prompt was shown to the head while it was trained so its tau says nothing"
    lines = [{"question_id": 1, "turns": [seen]}, {"question_id": 2, "turns": ["this one was not"]}]
    task = tmp_path / "task.jsonl"
    task.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    Fingerprints.of([seen]).save(tmp_path / "prompts.npy")
    monkeypatch.setattr(NGram, "training_prompts", [tmp_path / "prompts.npy"])
    plan = plan_of(tmp_path, "measure=acceptance", f"task.path={task}", "task.limit=2")
    run = load_run(measured(plan, tmp_path))
    assert run.manifest.arms["ngram"]["contaminated"] == 1
    marks = {row.method: formatting.marks(row) for row in summarise(run)}
    assert "contaminated: 1 of 2" in marks["ngram"]
    assert "contaminated" not in marks["vanilla"]
    assert "ngram: 1 of 2 prompts share 13 words" in capsys.readouterr().err
