"""Sources of dialogues: forms of files, what the target writes, what may not be trained on."""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from harness.config import ConfigError, build
from harness.decoding.loop import DecodingLoop
from harness.target.chat_template import render
from harness.target.model import Target
from harness.target.random_target import TinyTarget, byte_tokenizer
from harness.tasks.conversation import Message
from harness.tasks.task import JsonlTask
from harness.training.dialogues import (
    AnsweredPrompts,
    GivenDialogues,
    SelfSynthesised,
)
from harness.training.overlap import without_overlap
from harness.training.writer import Writer
from methods.vanilla import Vanilla


@pytest.fixture(scope="module")
def writer() -> Writer:
    spec = TinyTarget()
    loaded = spec.load(lambda _: None)
    engine = DecodingLoop(Target(loaded.model), loaded.end_token_ids, 512, timed=False)
    vanilla = Vanilla()
    vanilla.bind(engine.target)
    return Writer(
        engine=engine,
        drafter=vanilla,
        render=lambda messages: render(loaded.tokenizer, messages, spec.chat),
        eos_token_id=loaded.tokenizer.eos_token_id,
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
    {"conversations": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]},
    {"messages": [{"from": "Human", "value": "hi"}, {"role": "model", "text": "yes", "tool_calls": None}]},
    {"messages": None, "conversations": ["hi", "yes"]},
    {
        "conversation": [
            {"role": "user", "content": [{"type": "text", "text": "hi"}]},
            {"from": "bot", "value": "yes"},
        ]
    },
    {"prompt": [{"role": "user", "content": "hi"}], "completion": [{"role": "assistant", "content": "yes"}]},
    {"prompt": "hi", "response": "yes"},
    {"instruction": "hi", "input": "", "output": "yes"},
    {"question": "hi", "answer": "yes"},
    {
        "conversations": [
            {"from": "gpt", "value": "welcome"},
            {"from": "human", "value": "hi"},
            {"from": "gpt", "value": "yes"},
        ]
    },
]


@pytest.mark.parametrize("line", FORMS, ids=lambda line: "-".join(line))
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
    with pytest.raises(ConfigError, match=r"lines\.jsonl:2: needs prompt_ids .*; got the keys question$"):
        GivenDialogues(path=path).load(writer)


@pytest.mark.parametrize("kind", ["self", "answered"])
def test_what_the_target_writes_goes_on_where_it_broke_off(kind: str, tmp_path: Path, writer: Writer) -> None:
    task = JsonlTask(
        name="t",
        path=file_of(tmp_path, *({"question_id": i, "turns": [f"q{i}"], "kind": "qa"} for i in range(7))),
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
    assert {sample.category for sample in whole} <= ({""} if kind == "self" else {"qa"})


def test_a_second_turn_is_asked_behind_the_first_answer(tmp_path: Path, writer: Writer) -> None:
    turns = [["one"], ["two", "and two"], ["three"], ["four", "and four"]]
    task = JsonlTask(
        name="t", path=file_of(tmp_path, *({"question_id": i, "turns": of} for i, of in enumerate(turns)))
    )

    def read(out: str, num: int) -> list[dict[str, Any]]:
        source = AnsweredPrompts(
            task=task, out=str(tmp_path / out), num=num, batch_size=1, max_answer_tokens=6
        )
        list(source.read(writer))
        return [json.loads(line) for line in (tmp_path / out).read_text().splitlines()]

    lines = read("whole.jsonl", 9)
    asked = ["one", "two", "two\nand two", "three", "four", "four\nand four"]
    assert [line["user"] for line in lines] == asked
    for first, second in ((1, 2), (4, 5)):
        messages = [
            Message(role="user", content=lines[first]["user"]),
            Message(role="assistant", content=lines[first]["assistant"]),
            Message(role="user", content=lines[second]["user"].splitlines()[1]),
        ]
        assert lines[second]["prompt_ids"] == writer.render(messages)
    # A conversation is not broken off between its turns.
    assert len(read("broken.jsonl", 2)) == 3
    assert read("broken.jsonl", 9) == lines


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


UNREAD = [
    ({"messages": [{"role": "user", "content": None}]}, r"messages\[0\]\.content: null; needs a text"),
    ({"messages": [{"role": "user"}]}, r"messages\[0\]\.content: missing; needs a text"),
    (
        {"messages": [{"content": "hi"}]},
        r"messages\[0\]: needs a role, in role or from; got the keys content",
    ),
    ({"messages": [{"role": "tool", "content": "5"}]}, r"messages\[0\]\.role: 'tool' is not read"),
    (
        {"conversations": [{"from": "observation", "value": "5"}]},
        r"conversations\[0\]\.from: 'observation' is",
    ),
    (
        {"messages": [{"role": "assistant", "content": "", "tool_calls": [{}]}]},
        r"messages\[0\]\.tool_calls: calls",
    ),
    ({"messages": [None]}, r"messages\[0\]: needs an object with role and content, got NoneType"),
    ({"messages": "hi"}, "messages: needs a list, got str"),
    ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, r"content\[0\]: only parts of text"),
    ({"messages": None}, "got the keys messages; null: messages"),
    ({"prompt": 3, "completion": "yes"}, "prompt: needs a text, got int"),
    ({"user": "hi", "assistant": "yes", "complete": "no"}, "complete: needs true or false"),
    ({"prompt_ids": [1]}, "answer_ids: needs a list of integers"),
    (
        {"prompt_ids": [1, 999], "answer_ids": [1]},
        r"prompt_ids: the token 999 is outside the vocabulary, 0\.\.258",
    ),
]


@pytest.mark.parametrize(("line", "named"), UNREAD, ids=lambda value: value if isinstance(value, str) else "")
def test_what_is_not_read_is_named_with_file_line_and_field(
    line: Any, named: str, tmp_path: Path, writer: Writer
) -> None:
    path = file_of(tmp_path, FORMS[0], line)
    with pytest.raises(ConfigError, match=rf"lines\.jsonl:2: .*{named}"):
        GivenDialogues(path=path).load(writer)


def test_dialogues_without_an_answer_to_a_question_are_counted(tmp_path: Path, writer: Writer) -> None:
    notes: list[str] = []
    path = file_of(tmp_path, FORMS[0], {"conversations": []}, {"messages": [{"role": "gpt", "content": "x"}]})
    found = GivenDialogues(path=path).load(dataclasses.replace(writer, note=notes.append))
    assert len(found) == 1
    assert notes == [
        f"{path}: 2 dialogues left out, which have no answer to a question; the first is in line 2"
    ]


CHATML = "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
TEMPLATES = {
    "chatml": (CHATML, "<|im_start|>assistant\n", "<|im_end|>"),
    "trimmed": (CHATML.replace("m.content", "m.content | trim"), "<|im_start|>assistant\n", "<|im_end|>"),
    "end of text": ("{{ m.role }}: {{ m.content }}{% if m.role == 'assistant' %}<|endoftext|>{% endif %}",
                    "assistant:", "<|endoftext|>"),
    "no end": ("[{{ m.role }}] {{ m.content }}\n", "[assistant] ", "<|im_end|>"),
    "thoughts": ("<|im_start|>{{ m.role }}\n{{ m.content.split('=')[-1] }}<|im_end|>\n",
                 "<|im_start|>assistant\n", "<|im_end|>"),
}  # fmt: skip
"""Of a message, of the generation prompt, and the token that ends an answer."""


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize(
    "answers", [("bb", "dd", "ff"), ("think=bb", " dd ", "x=ff")], ids=["plain", "rewritten"]
)
def test_the_supervised_spans_are_the_answers_with_the_end_of_the_template(
    name: str, answers: tuple[str, ...], tmp_path: Path, writer: Writer
) -> None:
    """The target may end with any of two tokens, and the right one has the higher id in some templates."""
    body, prompt, end = TEMPLATES[name]
    tokenizer = byte_tokenizer(259)
    tokenizer.chat_template = (
        f"{{% for m in messages %}}{body}{{% endfor %}}{{% if add_generation_prompt %}}{prompt}{{% endif %}}"
    )
    ends = tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|im_end|>"])
    chat = TinyTarget().chat
    several = dataclasses.replace(
        writer,
        engine=DecodingLoop(writer.engine.target, ends, 512),
        render=lambda messages: render(tokenizer, messages, chat),
        eos_token_id=tokenizer.eos_token_id,
    )
    turns = [("user", "a"), ("assistant", answers[0]), ("user", "c"), ("assistant", answers[1])]
    turns += [("user", "e"), ("assistant", answers[2])]
    line = {"messages": [{"role": role, "content": text} for role, text in turns]}
    found: list[str] = []
    for sample in GivenDialogues(path=file_of(tmp_path, line)).load(several):
        spans = itertools.groupby(zip(sample.ids, sample.answer, strict=True), key=lambda pair: pair[1])
        texts = [(mine, tokenizer.decode([token for token, _ in pairs])) for mine, pairs in spans]
        found += [text for mine, text in texts if mine]
        assert texts[0][0] is False
        assert texts[-1][0] is True
    assert found == [f"{answer}{end}" for answer in answers]


def test_an_end_that_nothing_tells_is_asked_for(writer: Writer) -> None:
    unknown = dataclasses.replace(
        writer,
        engine=DecodingLoop(writer.engine.target, (1, 2), 512),
        eos_token_id=None,
    )
    with pytest.raises(ConfigError, match=r"any of the tokens \[1, 2\].*type target\.template=FILE\.jinja"):
        _ = unknown.answer_end
