"""Sources of dialogues: forms of files, what the target writes, what may not be trained on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from harness.config import ConfigError, build
from harness.decoding.loop import LocalEngine
from harness.target.chat_template import render
from harness.target.model import Target
from harness.target.random_target import TinyTarget
from harness.tasks.task import JsonlTask
from harness.training.dialogues import (
    AnsweredPrompts,
    GivenDialogues,
    SelfSynthesised,
    Writer,
)
from harness.training.overlap import without_overlap
from methods.vanilla import Vanilla


@pytest.fixture(scope="module")
def writer() -> Writer:
    spec = TinyTarget()
    loaded = spec.load(lambda _: None)
    engine = LocalEngine(Target(loaded.model), loaded.end_token_ids, 512, timed=False)
    vanilla = Vanilla()
    vanilla.bind(engine.target)
    return Writer(
        engine=engine,
        drafter=vanilla,
        render=lambda messages: render(loaded.tokenizer, messages, spec.chat),
        decode=lambda ids: str(loaded.tokenizer.decode(list(ids), skip_special_tokens=True)),
        encode=lambda text: list(loaded.tokenizer.encode(text, add_special_tokens=False)),
        note=lambda _: None,
    )


def file_of(tmp_path: Path, *lines: Any) -> str:
    file = tmp_path / "lines.jsonl"
    file.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return str(file)


def said(writer: Writer, sample: Any) -> str:
    return writer.decode([t for t, mine in zip(sample.ids, sample.answer, strict=True) if mine])


FORMS = [
    {"user": "hi", "assistant": "yes"},
    {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]},
    {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "yes"}]},
]


@pytest.mark.parametrize("line", FORMS, ids=lambda line: next(iter(line)))
def test_common_forms_are_read_alike(line: Any, tmp_path: Path, writer: Writer) -> None:
    (sample,) = GivenDialogues(path=file_of(tmp_path, line)).load(writer)
    assert said(writer, sample) == "yes"
    # The end token is the assistant's, where the answer is whole.
    assert sample.ids[-1] in writer.engine.end_token_ids
    assert sample.answer[-1]
    assert sample.prompt == "hi"


def test_a_cut_answer_has_no_end_token(tmp_path: Path, writer: Writer) -> None:
    path = file_of(tmp_path, {"user": "hi", "assistant": "yes", "complete": False})
    (sample,) = GivenDialogues(path=path).load(writer)
    assert sample.ids[-1] not in writer.engine.end_token_ids


def test_both_answers_of_two_turns_are_the_assistants(tmp_path: Path, writer: Writer) -> None:
    turns = [("user", "a"), ("assistant", "bb"), ("user", "c"), ("assistant", "dd")]
    line = {"messages": [{"role": role, "content": text} for role, text in turns]}
    (sample,) = GivenDialogues(path=file_of(tmp_path, line)).load(writer)
    assert said(writer, sample) == "bbdd"
    assert "".join(writer.decode(sample.ids).split()) == "useraassistantbbusercassistantdd"


def test_lines_of_no_known_form_are_told_by_number(tmp_path: Path, writer: Writer) -> None:
    path = file_of(tmp_path, FORMS[0], {"question": "hi"})
    with pytest.raises(ConfigError, match=r"lines\.jsonl:2: needs prompt_ids"):
        GivenDialogues(path=path).load(writer)


@pytest.mark.parametrize("kind", ["self", "answered"])
def test_what_the_target_writes_goes_on_where_it_broke_off(kind: str, tmp_path: Path, writer: Writer) -> None:
    task = JsonlTask(
        name="t", path=file_of(tmp_path, *({"question_id": i, "turns": [f"q{i}"]} for i in range(7)))
    )

    def source(out: str, num: int) -> Any:
        usual: dict[str, Any] = {
            "out": str(tmp_path / out),
            "num": num,
            "batch_size": 3,
            "max_answer_tokens": 6,
        }
        if kind == "answered":
            return AnsweredPrompts(task=task, **usual)
        return SelfSynthesised(max_user_tokens=40, user_temperature=2.0, **usual)

    whole = list(source("whole.jsonl", 7).read(writer))
    first = list(source("broken.jsonl", 3).read(writer))
    assert list(source("broken.jsonl", 7).read(writer))[: len(first)] == first
    assert (tmp_path / "broken.jsonl").read_text() == (tmp_path / "whole.jsonl").read_text()
    lines = [json.loads(line) for line in (tmp_path / "whole.jsonl").read_text().splitlines()]
    assert len(lines) == 7
    assert len(whole) == sum(bool(line["answer_ids"]) for line in lines)
    assert kind == "self" or [line["user"] for line in lines] == [f"q{i}" for i in range(7)]


def test_the_users_prefix_ends_where_the_users_words_begin(writer: Writer) -> None:
    assert writer.decode(writer.user_prefix()).endswith("user\n")


def test_prompts_that_share_thirteen_words_with_a_task_are_dropped(tmp_path: Path, writer: Writer) -> None:
    words = [f"w{i}" for i in range(20)]
    asked = {"question_id": 1, "turns": ["short", " ".join(words)]}
    task = build(
        {"_target_": "harness.tasks.task.JsonlTask", "name": "t", "path": file_of(tmp_path, asked)}, "task"
    )
    prompts = {
        "same": " ".join(words[3:16]).upper() + "!",
        "twelve": " ".join(words[3:15]) + " other",
        "short": "short",
    }
    lines = [{"user": text, "assistant": name} for name, text in prompts.items()]
    other = tmp_path / "dialogues.jsonl"
    other.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    kept, num_dropped = without_overlap(GivenDialogues(path=str(other)).load(writer), [task])
    assert num_dropped == 1
    assert [said(writer, sample) for sample in kept] == ["twelve", "short"]
