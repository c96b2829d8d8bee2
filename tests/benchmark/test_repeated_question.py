"""Multi-round thinking and best of N: prompts to the character, forced ends of thoughts, memory, warm-up."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tokenizers import AddedToken

from harness.benchmark.scenarios.best_of_n import BestOfN
from harness.benchmark.scenarios.multi_round import MultiRound, round_prompt
from harness.benchmark.scenarios.thinking import Tags, Thinking
from harness.benchmark.scenarios.turn_runner import Call, Pass, Player, TurnRunner
from harness.config import ConfigError
from harness.decoding.acceptance import Coupled
from harness.decoding.batch import Generation, Request
from harness.decoding.forced_tokens import ForcedTokens
from harness.decoding.sampling import DecodingParams, stream_key
from harness.store.records import Run
from harness.store.run_store import load_run
from harness.target.random_target import byte_tokenizer
from harness.tasks.conversation import Conversation, Message
from methods.vanilla import Vanilla
from tests.benchmark.test_experiment import measured, plan_of

REMEMBERER = "+methods.rememberer._target_=tests.decoding.test_memory.Rememberer"
CLOSING = "\n\n</think>\n\n"
SENTENCE = (
    "Considering the limited time by the user, I have to give the solution based on the thinking directly"
    " now.\n</think>.\n\n"
)


def tokenizer(thinks: bool = False, switch: bool = False) -> Any:
    made = byte_tokenizer(300)
    if thinks:
        made.add_tokens([AddedToken("</think>", special=False)])
    made.chat_template = "{% if enable_thinking %}{% endif %}" if switch else "{{ messages }}"
    return made


def tags(thinks: bool = False, switch: bool = False, **settings: Any) -> Tags:
    return Thinking(**settings).tags(tokenizer(thinks, switch))


def answer(text: str, own: Tags) -> str | None:
    return own.answer([1], lambda _: text)


def test_the_second_prompt_is_the_papers_to_the_character() -> None:
    assert round_prompt("What is 1 + 1?", None) == "What is 1 + 1?"
    assert round_prompt("What is 1 + 1?", "\n\nIt is {2}.") == (
        "What is 1 + 1?\nPreviously I tried to solve the problem. Now I need to double check and verify my"
        " previous answer and re-answer the question. My previous answer is: <answer> \n\nIt is {2}."
        " </answer>, and please re-answer."
    )


@pytest.mark.parametrize(
    ("thinks", "switch", "text", "expected"),
    [
        # Qwen3's separator is the tag alone, and DeepSeek-R1's takes the line breaks around it.
        (True, True, "Hm.</think>\n\nIt is 2.\n", "\n\nIt is 2."),
        (True, True, "Hm. </think> No. </think>.\n\nIt is 2.", ".\n\nIt is 2."),
        (True, False, "Hm.\n</think>\n\nIt is 2.", "\nIt is 2."),
        (True, False, "Hm. </think> It is 2.", None),
        (True, True, "Hm, so I think it is 2", None),
        (True, True, "Hm.</think>", None),
        # Without a token for the tag, an output that does not hold it is an answer as a whole.
        (False, False, " It is 2. ", "It is 2."),
        (False, False, "Hm.\n\n</think>\n\nIt is 2.", "\n\nIt is 2."),
    ],
)
def test_the_previous_answer_is_what_follows_the_last_thought(
    thinks: bool, switch: bool, text: str, expected: str | None
) -> None:
    assert answer(text, tags(thinks, switch)) == expected


def test_a_thought_is_closed_as_its_model_does() -> None:
    assert tags(True, True).closing == SENTENCE
    assert tags(True, False).closing == tags(False, True).closing == CLOSING
    assert tags(True, False, closing="sentence").closing == SENTENCE
    native = tags(True)
    assert len(native.tag_ids) == 1
    assert native.closing_ids[2] == native.tag_ids[0]
    written = tags(False)
    assert tokenizer().decode(written.closing_ids) == CLOSING
    assert len(written.tag_ids) == len("</think>")
    assert native.card()["tag"] == "the target's token </think>"
    assert written.card()["tag"] == "</think> in ordinary tokens (fallback)"


def test_the_budget_is_a_share_of_the_cap() -> None:
    native = tags(True)
    assert native.forced(15000) == ForcedTokens(ids=native.closing_ids, after=12000, unless=native.tag_ids)
    always, none = tags(True, only_open=False).forced(10), tags(True, budget_share=None).forced(10)
    assert always is not None
    assert (always.after, always.unless, none) == (8, (), None)


def test_without_the_tag_a_scenario_refuses_where_it_is_asked_to() -> None:
    with pytest.raises(ConfigError, match=r"no token </think>.*thinking.fallback=text"):
        tags(False, fallback="refuse")


def test_best_of_n_repeats_the_question_only_where_the_paper_does() -> None:
    one = Conversation(id="1", category="", turns=("Why?",))
    clean, grown = (BestOfN(bon_prompt=kind) for kind in ("clean", "accumulate"))
    assert [len(clean.messages(one, number)) for number in range(4)] == [1, 1, 1, 1]
    assert [len(grown.messages(one, number)) for number in range(4)] == [1, 2, 3, 4]
    assert {message.content for message in grown.messages(one, 3)} == {"Why?"}


class Scripted:
    """Stands for a runner whose target gives these answers; keeps what it was asked."""

    def __init__(self, answers: Sequence[str], thinks: bool = True) -> None:
        self.model = SimpleNamespace(tokenizer=tokenizer(thinks, switch=True))
        self.params = DecodingParams(name="greedy", max_new_tokens=100, seeds=(5, 6))
        self._answers = iter(answers)
        self.chats: list[list[str]] = []
        self.calls: list[Call] = []
        self.kept: list[bool] = []
        self.most_rounds = 99

    def render(self, messages: Sequence[Message]) -> list[int]:
        assert {message.role for message in messages} == {"user"}
        self.chats.append([message.content for message in messages])
        return [len(self.chats)]

    def ask(self, _: Pass, calls: Sequence[Call], same_question: bool = False) -> list[Any]:
        self.calls += calls
        self.kept.append(same_question)
        (call,) = calls
        key = call.conversation.id, call.turn, call.sample
        generation = SimpleNamespace(output_ids=next(self._answers))
        return [SimpleNamespace(call=call, key=key, generation=generation)]

    def has_room(self, call: Call) -> bool:
        return call.turn < self.most_rounds

    def decode(self, answer: Any) -> str:
        return str(answer)


def one_pass(seed: int = 0) -> Pass:
    return Pass(player=Player(name="vanilla", method=Vanilla()), seed=seed)


BLOCK = (Conversation(id="a", category="", turns=("One?", "left out")),)


def test_every_round_asks_afresh_and_shows_the_answer_before() -> None:
    runner: Any = Scripted(["Hm.</think>\n\nA", "no end of it", "Hm.</think>B"])
    MultiRound(num_rounds=3).play(runner, one_pass(seed=1), BLOCK)
    assert runner.chats == [["One?"], [round_prompt("One?", "\n\nA")], ["One?"]]
    assert runner.kept == [False, True, True]
    assert [(call.turn, call.sample) for call in runner.calls] == [(0, 1), (1, 1), (2, 1)]
    assert {call.forced.after for call in runner.calls} == {80}


def test_a_question_ends_where_an_answer_leaves_no_room_for_another_round() -> None:
    runner: Any = Scripted(["Hm.</think>A", "B"])
    runner.most_rounds = 1
    two = tuple(Conversation(id=name, category="", turns=("One?",)) for name in "ab")
    made = MultiRound().play(runner, one_pass(), two)
    assert [one.key for one in made] == [("a", 0, 0), ("b", 0, 0)]


def test_without_a_token_for_the_tag_the_whole_answer_is_shown() -> None:
    runner: Any = Scripted(["It is 2.", "3"], thinks=False)
    MultiRound().play(runner, one_pass(), BLOCK)
    assert runner.chats == [["One?"], [round_prompt("One?", "It is 2.")]]


def test_a_frozen_history_shows_vanillas_answer_to_every_method() -> None:
    runner: Any = Scripted(["Hm.</think>V", "V2", "no end", "V4"])
    frozen = MultiRound().history(runner, one_pass().player, BLOCK)
    assert frozen == {("a", 0, 0): "V"}
    other: Any = Scripted(["Hm.</think>X", "X2", "Hm.</think>X3", "X4"])
    for seed in (0, 1):
        MultiRound().play(other, one_pass(seed), BLOCK, frozen)
    assert other.chats == [["One?"], [round_prompt("One?", "V")], ["One?"], ["One?"]]
    assert MultiRound(num_rounds=1).history(runner, one_pass().player, BLOCK) is None


def test_samples_of_all_seeds_have_streams_of_their_own() -> None:
    runner: Any = Scripted(["x"] * 8)
    for seed in (0, 1):
        BestOfN().play(runner, one_pass(seed), BLOCK)
    assert [call.sample for call in runner.calls] == list(range(8))
    assert runner.kept == [False, True, True, True] * 2


def test_every_sample_is_drawn_with_its_own_key() -> None:
    """The keys that the engine is given, for the calls of both seeds of a decoding."""
    keys: list[int] = []

    def generate(requests: Sequence[Request], *_: Any) -> list[Generation]:
        keys.extend(request.key for request in requests)
        return [Generation(output_ids=[1]) for _ in requests]

    engine: Any = SimpleNamespace(
        generate=generate, reset_peak=lambda: None, energy_mj=lambda: None, peak_memory_bytes=lambda: None
    )
    model: Any = SimpleNamespace(tokenizer=tokenizer(True), max_context=100, vocab_size=300)
    runner = TurnRunner(
        engine=engine,
        model=model,
        params=DecodingParams(name="sampled", temperature=1.0, max_new_tokens=100, seeds=(5, 6)),
        acceptor=Coupled(),
        render=lambda _: [1],
        decode=lambda _: "2",
    )
    for seed in (0, 1):
        BestOfN(num_samples=4).play(runner, one_pass(seed), BLOCK)
    assert keys == [stream_key(5 + sample // 4, "a", 0, sample) for sample in range(8)]
    assert len(set(keys)) == 8


def test_a_prompt_of_token_ids_is_refused_by_name() -> None:
    ids = (Conversation(id="t", category="", input_ids=(1, 2)),)
    for scenario in (MultiRound(), BestOfN()):
        with pytest.raises(ConfigError, match=r"conversation t: .*type scenario=single"):
            scenario.play(Scripted([]), one_pass(), ids)  # type: ignore[arg-type]


def test_the_room_for_a_sequence_holds_its_longest_prompt() -> None:
    def render(messages: Sequence[Message]) -> list[int]:
        return [0] * sum(len(message.content) for message in messages)

    (one,) = BLOCK
    assert MultiRound().longest_sequence(one, render, 100) == len(round_prompt("One?", "")) + 200
    assert MultiRound(num_rounds=1).longest_sequence(one, render, 100) == 4 + 100
    assert BestOfN(bon_prompt="accumulate").longest_sequence(one, render, 100) == 4 * 4 + 100


def scaled(tmp_path: Path, scenario: str, *overrides: str, decoding: str = "greedy") -> Run:
    """A run on the tiny target, whose rememberer drafts from earlier calls alone."""
    given = [
        *(f"scenario={scenario}", f"decoding={decoding}", "measure=acceptance", "measure.batch_size=1"),
        *("max_new_tokens=40", "+ignore_end_token=true", "scenario.thinking.budget_share=0.5", REMEMBERER),
        *overrides,
    ]
    return load_run(measured(plan_of(tmp_path, *given), tmp_path, decoding))


def drafted(run: Run, turn: int = 0, sample: int = 0) -> int:
    """Nodes that the rememberer drafted in these calls."""
    return sum(
        sum(one.drafted)
        for one in run.records
        if (one.arm, one.turn, one.sample) == ("rememberer", turn, sample)
    )


@pytest.mark.parametrize("decoding", ["greedy", "sampled"])
def test_rounds_of_all_methods_are_vanillas_with_the_end_of_each_thought(
    tmp_path: Path, decoding: str
) -> None:
    run = scaled(tmp_path, "multi_round", decoding=decoding)
    assert {record.verdict.kind for record in run.records if record.verdict} == {"identical"}
    assert len(run.records) == 3 * 3 * 2
    closing = tokenizer().encode(CLOSING, add_special_tokens=False)
    for one in run.records:
        assert one.output_ids[20 : 20 + len(closing)] == closing
        begin = one.forced.index(1)
        assert one.forced[begin : begin + len(closing)] == [1] * len(closing)
        assert sum(one.forced) == len(closing)
    assert run.manifest.prompts["scenario"]["thinking"]["tag"].endswith("(fallback)")
    assert {null.num_differing for null in run.nulls} <= {0}
    assert drafted(run, turn=0) == 0


@pytest.mark.parametrize(
    ("overrides", "remembers", "scope"),
    [
        ([], True, "question"),
        (["scenario.memory=call"], False, "call"),
        (["+methods.rememberer.remember=call"], False, "call"),
        (["scenario.memory=call", "+methods.rememberer.remember=question"], True, "question"),
    ],
)
def test_memory_of_a_question_is_a_switch(
    tmp_path: Path, overrides: list[str], remembers: bool, scope: str
) -> None:
    """At temperature 0 the samples are the same, so a method that remembers the first drafts the second."""
    run = scaled(tmp_path, "best_of_n", "scenario.num_samples=2", *overrides)
    assert (drafted(run, sample=1) > 0) is remembers
    assert drafted(run, sample=0) == 0, "the next question is another one"
    assert run.manifest.arms["rememberer"]["scope"] == scope
    assert run.manifest.arms["ngram"]["scope"] == "call"
    assert {record.verdict.kind for record in run.records if record.verdict} == {"identical"}


def test_memory_can_be_made_to_reach_from_question_to_question(tmp_path: Path) -> None:
    same = tmp_path / "twice.jsonl"
    same.write_text("\n".join(f'{{"question_id": {n}, "turns": ["one two"]}}' for n in (1, 2)))
    runs = [
        scaled(
            tmp_path, "best_of_n", "scenario.num_samples=1", f"task.path={same}", f"scenario.memory={scope}"
        )
        for scope in ("question", "process")
    ]
    assert [drafted(run) > 0 for run in runs] == [False, True]


def test_samples_differ_and_are_the_same_next_time(tmp_path: Path) -> None:
    outputs = []
    for replicate in (0, 1):
        run = scaled(tmp_path, "best_of_n", f"replicate={replicate}", "seeds=[3]", decoding="sampled")
        own = {(one.conversation, one.sample): one.output_ids for one in run.records if one.arm == "ngram"}
        assert len({tuple(ids) for (name, _), ids in own.items() if name == "1"}) == 4
        outputs.append(own)
    assert outputs[0] == outputs[1]


def test_the_papers_warm_up_is_the_first_question_three_times_in_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, str, int]] = []
    play = BestOfN.play

    def watched(self: BestOfN, runner: Any, by: Pass, block: Any, frozen: Any = None) -> Any:
        asked.append((block[0].id, block[0].turns[0], runner.params.max_new_tokens))
        return play(self, runner, by, block, frozen)

    monkeypatch.setattr(BestOfN, "play", watched)
    given = ["measure.num_warmup=1", "scenario.num_samples=1", "~methods.ngram", "task.limit=1"]
    scaled(tmp_path, "best_of_n", "scenario.warm_up=paper", *given)
    # Two arms each time: vanilla and the rememberer.
    warm = [(f"warm-up {i} 0", "WARMUPFLAG one two one two one", 40) for i in range(3) for _ in range(2)]
    assert asked == [*warm, *[("1", "one two one two one", 40)] * 2]
    asked.clear()
    scaled(tmp_path, "best_of_n", *given)
    assert [most for _, text, most in asked if text != "one two one two one"] == [16, 16]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["scenario=best_of_n", "scenario.num_samples=0"], r"num_samples.*greater than or equal to 1, got 0"),
        (["scenario=multi_round", "scenario.num_rounds=0"], r"num_rounds.*greater than or equal to 1, got 0"),
        (
            ["scenario=multi_round", "measure=acceptance"],
            r"measure.batch_size=4: .*one question at a time.*type measure.batch_size=1",
        ),
        (["scenario=best_of_n", "scenario.thinking.budget_share=1.5"], r"budget_share.*less than 1, got 1.5"),
        (
            ["scenario=best_of_n", "+methods.ngram.remember=question"],
            r"methods.ngram.remember=question: .*its scope is call",
        ),
    ],
)
def test_bad_settings_are_refused_with_what_to_type(
    tmp_path: Path, overrides: list[str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        plan_of(tmp_path, *overrides)


def test_a_target_that_does_not_think_is_refused_before_anything_is_measured(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no token </think>"):
        scaled(tmp_path, "multi_round", "scenario.thinking.fallback=refuse")
    assert not list((tmp_path / "runs").glob("*"))
