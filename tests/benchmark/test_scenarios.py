"""Scenarios: single turns, and one of several samples and looks that no other file knows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typing_extensions import override

from harness.benchmark.dry_run.survey import survey
from harness.benchmark.scenarios.scenario import Scenario
from harness.benchmark.scenarios.turn_runner import Answers, Block, Call, Pass, TurnResult, TurnRunner
from harness.config import configurable
from harness.store.records import GenerationRecord
from harness.store.run_store import load_run
from harness.tasks.conversation import Conversation
from methods.ngram import NGram
from tests.benchmark.test_experiment import measured, plan_of

FORCED = [7, 8]
BUDGET = 5


@configurable
class SecondLook(Scenario):
    """Several samples of each question, and a second look at each answer, which begins with forced tokens."""

    num_samples: int

    @override
    def num_calls(self, conversation: Conversation) -> int:
        return 2 * self.num_samples

    @override
    def num_chained_calls(self, conversation: Conversation) -> int:
        return 2

    @override
    def play(
        self, runner: TurnRunner, one_pass: Pass, block: Block, frozen: Answers | None = None
    ) -> list[TurnResult]:
        results: list[TurnResult] = []
        for conversation in block:
            prompt = runner.chat_prompt(conversation, [])
            samples = [one_pass.seed * self.num_samples + i for i in range(self.num_samples)]
            calls = [Call(conversation=conversation, prompt=prompt, sample=i) for i in samples]
            first = runner.ask(one_pass, calls, max_new_tokens=BUDGET)
            second = [
                Call(
                    conversation=conversation,
                    prompt=[*one.call.prompt, *one.generation.output_ids, *FORCED],
                    turn=1,
                    sample=one.call.sample,
                )
                for one in first
            ]
            results += [*first, *runner.ask(one_pass, second, same_question=True)]
        return results


def places(records: list[GenerationRecord], arm: str = "ngram") -> list[tuple[str, int, int]]:
    return sorted((one.conversation, one.turn, one.sample) for one in records if one.arm == arm)


def test_single_plays_the_first_turn_alone(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, "measure=acceptance", "scenario=single")
    (cell,) = survey(plan)
    run = load_run(measured(plan, tmp_path))
    assert places(list(run.records)) == [("1", 0, 0), ("2", 0, 0), ("3", 0, 0)]
    assert cell["num_generations"] == len(run.records) == 6
    assert run.manifest.config["scenario"]["name"] == "single"


@pytest.mark.parametrize("decoding", ["greedy", "sampled"])
def test_a_scenario_of_one_file_and_one_yaml_counts_samples_looks_and_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, decoding: str
) -> None:
    """The calls, their budget and forced ids are in the ledger, and every arm writes what vanilla writes."""
    kept: list[bool] = []
    monkeypatch.setattr(NGram, "scope", "question")
    monkeypatch.setattr(NGram, "new_call", lambda self, keep_memory: kept.append(keep_memory))
    search = f"hydra.searchpath=[file://{Path(__file__).parent / 'conf'}]"
    given: list[Any] = [search, "scenario=second_look", "measure=acceptance", f"decoding={decoding}"]
    plan = plan_of(tmp_path, *given, "seeds=[0,1]", "measure.num_warmup=0")
    (cell,) = survey(plan)
    run = load_run(measured(plan, tmp_path, decoding))
    seeds = 1 if decoding == "greedy" else 2
    expected = [(name, turn, sample) for name in "123" for turn in (0, 1) for sample in range(2 * seeds)]
    assert places(list(run.records)) == expected
    assert cell["num_generations"] == len(run.records) == 2 * len(expected)
    assert {record.verdict.kind for record in run.records if record.verdict} == {"identical"}
    assert kept == [False, *[False, True] * 3 * seeds], "a run begins with nothing remembered"
    by_place = {(one.conversation, one.turn, one.sample): one for one in run.records if one.arm == "ngram"}
    for (name, turn, sample), one in by_place.items():
        if turn == 0:
            assert len(one.output_ids) <= BUDGET
            grown = by_place[name, 1, sample].num_prompt_tokens - one.num_prompt_tokens
            assert grown == len(one.output_ids) + len(FORCED)
    answers = {tuple(by_place["1", 0, sample].output_ids) for sample in range(2 * seeds)}
    assert (len(answers) == 1) == (decoding == "greedy")
