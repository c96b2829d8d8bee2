"""Dialogues to train heads on: given ones, prompts that the target answers, and what the target asks itself.

What the target writes is kept as token ids in a JSONL file, a dialogue a line; it goes on where it broke off.
"""

from __future__ import annotations

import json
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from harness.config import ConfigError, configurable
from harness.decoding.acceptance import Coupled
from harness.decoding.loop import LocalEngine, Request
from harness.decoding.sampling import DecodingParams, stream_key
from harness.drafting.drafter import Drafter
from harness.tasks.conversation import Message
from harness.tasks.jsonl import read_lines
from harness.tasks.task import Task

_SHARED_GRAM = 13
"""Words in a row that no training prompt may share with an evaluation prompt (GPT-3: arXiv 2005.14165)."""
_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Sample:
    """A dialogue as tokens. answer: which the assistant wrote, with its end token. prompt: the question."""

    ids: tuple[int, ...]
    answer: tuple[bool, ...]
    prompt: str


@dataclass(frozen=True, kw_only=True)
class Writer:
    """The target as an author.

    drafter: a method that has met it; whatever that drafts, what is written is the target's own. render:
    messages to the ids of a prompt; decode: ids to text; encode: text to ids.
    """

    engine: LocalEngine
    drafter: Drafter
    render: Callable[[Sequence[Message]], list[int]]
    decode: Callable[[Sequence[int]], str]
    encode: Callable[[str], list[int]]
    note: Callable[[str], None]

    def write(self, prompts: Sequence[tuple[str, list[int]]], params: DecodingParams) -> list[list[int]]:
        """What the target makes of prompts, each with the name of its random stream; one batch."""
        requests = [Request(prompt=ids, key=stream_key(params.seeds[0], name, 0, 0)) for name, ids in prompts]
        made = self.engine.generate(requests, self.drafter, params, Coupled())
        return [one.output_ids for one in made]

    def user_prefix(self) -> list[int]:
        """What stands before the words of a user's first turn."""
        one, other = (self.render([Message(role="user", content=text)]) for text in ("A", "7"))
        place = next(i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)
        return one[:place]


@configurable
class Dialogues(ABC):
    """Base of all sources. limit: most dialogues that are used."""

    limit: int | None = Field(default=None, ge=1)

    @abstractmethod
    def read(self, writer: Writer) -> Iterator[Sample]:
        """The dialogues; may take hours where the target has to write them first."""

    @abstractmethod
    def card(self) -> dict[str, Any]:
        """Where they come from; JSON types."""

    def load(self, writer: Writer) -> list[Sample]:
        """Up to `limit` of them."""
        found = []
        for sample in self.read(writer):
            found.append(sample)
            if len(found) == self.limit:
                break
        if not found:
            raise ConfigError(f"data: the source holds no dialogue: {self.card()}")
        return found


@configurable
class GivenDialogues(Dialogues):
    """A JSONL file of conversations, one a line, in any of the common forms.

    `{"prompt_ids", "answer_ids"}` (as the target wrote them), `{"user", "assistant"}` (with `complete`: false
    where the answer was cut), `{"messages": [{"role", "content"}]}`, or ShareGPT's
    `{"conversations": [{"from", "value"}]}`.
    """

    path: str

    def read(self, writer: Writer) -> Iterator[Sample]:
        """See `Dialogues`."""
        for number, line in read_lines(self.path):
            if "prompt_ids" in line:
                yield written_sample(line)
                continue
            messages = _messages(line)
            if not messages:
                raise ConfigError(
                    f"{self.path}:{number}: needs prompt_ids and answer_ids, user and assistant, messages, or"
                    f" conversations; got the keys {', '.join(line)}"
                )
            yield _tokenised(messages, bool(line.get("complete", True)), writer)

    def card(self) -> dict[str, Any]:
        """See `Dialogues`."""
        return {"source": "given dialogues", "file": Path(self.path).name}


@configurable
class WrittenDialogues(Dialogues):
    """Base of what the target writes itself. out: the JSONL file. batch_size: dialogues written together.

    num: how many are wanted. seed: of the sampling. max_answer_tokens: where an answer is cut.
    """

    out: str
    num: int = Field(ge=1)
    batch_size: int = Field(default=32, ge=1)
    seed: int = 0
    max_answer_tokens: int = Field(default=256, ge=2)
    temperature: float = Field(default=0.0, ge=0)

    @abstractmethod
    def questions(self, writer: Writer, begin: int, count: int) -> list[str | None]:
        """Questions number `begin` and on; None for one that is no use. Shorter where there are no more."""

    def read(self, writer: Writer) -> Iterator[Sample]:
        """See `Dialogues`."""
        file = Path(self.out)
        file.parent.mkdir(parents=True, exist_ok=True)
        known = list(read_lines(self.out)) if file.exists() else []
        yield from (written_sample(line) for _, line in known if line["answer_ids"])
        num_done = len(known)
        while num_done < self.num:
            lines = self._more(writer, num_done, min(self.batch_size, self.num - num_done))
            if not lines:
                return
            with file.open("a", encoding="utf-8") as stream:
                stream.writelines(json.dumps(line) + "\n" for line in lines)
                stream.flush()
                os.fsync(stream.fileno())
            num_done += len(lines)
            num_tokens = sum(len(line["answer_ids"]) for line in lines)
            writer.note(
                f"{num_done} of {self.num} dialogues written, the last {num_tokens} tokens in {self.out}"
            )
            yield from (written_sample(line) for line in lines if line["answer_ids"])

    def _more(self, writer: Writer, begin: int, count: int) -> list[dict[str, Any]]:
        """The next lines; one with no answer for a question that is no use."""
        asked = self.questions(writer, begin, count)
        prompts = [
            [] if text is None else writer.render([Message(role="user", content=text)]) for text in asked
        ]
        useful = [place for place, ids in enumerate(prompts) if ids]
        params = DecodingParams(
            name="answers",
            temperature=self.temperature,
            max_new_tokens=self.max_answer_tokens,
            seeds=(self.seed,),
        )
        answers: dict[int, list[int]] = {place: [] for place in range(len(asked))}
        if useful:
            made = writer.write([(f"answer {begin + place}", prompts[place]) for place in useful], params)
            answers.update(zip(useful, made, strict=True))
        return [
            {
                "user": text,
                "assistant": writer.decode(answers[place]),
                "prompt_ids": prompts[place],
                "answer_ids": answers[place],
            }
            for place, text in enumerate(asked)
        ]


@configurable
class AnsweredPrompts(WrittenDialogues):
    """First turns of a task (a local JSONL, a hub data set), answered by the target."""

    task: Task

    def questions(self, writer: Writer, begin: int, count: int) -> list[str | None]:
        """See `WrittenDialogues`."""
        if not hasattr(self, "_known"):
            self._known = [one.turns[0] for one in self.task.load() if one.turns]
        return list(self._known[begin : begin + count])

    def card(self) -> dict[str, Any]:
        """See `Dialogues`."""
        answered = {"temperature": self.temperature, "max_answer_tokens": self.max_answer_tokens}
        return {"source": "prompts answered by the target", "prompts": self.task.card(), **answered}


@configurable
class SelfSynthesised(WrittenDialogues):
    """The target writes the user's turn from its bare chat prefix, then answers (Magpie: arXiv 2406.08464).

    Works offline for any chat model. user_temperature: of the questions. max_user_tokens: a longer question
    is thrown away.
    """

    user_temperature: float = Field(default=0.9, gt=0)
    max_user_tokens: int = Field(default=128, ge=4)

    def questions(self, writer: Writer, begin: int, count: int) -> list[str | None]:
        """See `WrittenDialogues`."""
        params = DecodingParams(
            name="questions",
            temperature=self.user_temperature,
            max_new_tokens=self.max_user_tokens,
            seeds=(self.seed,),
        )
        prefix = writer.user_prefix()
        made = writer.write([(f"question {begin + i}", prefix) for i in range(count)], params)
        ended = [ids[-1] in writer.engine.end_token_ids for ids in made]
        texts = [writer.decode(ids).strip() for ids in made]
        return [text if text and whole else None for text, whole in zip(texts, ended, strict=True)]

    def card(self) -> dict[str, Any]:
        """See `Dialogues`."""
        return {
            "source": "self-synthesised by the target",
            "num": self.num,
            "seed": self.seed,
            "user_temperature": self.user_temperature,
            "temperature": self.temperature,
            "max_answer_tokens": self.max_answer_tokens,
        }


@configurable
class MixedDialogues(Dialogues):
    """Several sources, one after the other."""

    parts: dict[str, Dialogues] = Field(min_length=1)

    def read(self, writer: Writer) -> Iterator[Sample]:
        """See `Dialogues`."""
        for part in self.parts.values():
            yield from part.load(writer)

    def card(self) -> dict[str, Any]:
        """See `Dialogues`."""
        return {"source": "mixed", "parts": {name: part.card() for name, part in self.parts.items()}}


def written_sample(line: dict[str, Any]) -> Sample:
    """The sample of a line that the target wrote."""
    prompt, answer = line["prompt_ids"], line["answer_ids"]
    marks = (*[False] * len(prompt), *[True] * len(answer))
    return Sample((*prompt, *answer), marks, str(line.get("user", "")))


def without_overlap(samples: Iterable[Sample], tasks: Iterable[Task]) -> tuple[list[Sample], int]:
    """Samples whose prompt shares no 13 words in a row with a prompt of the tasks; how many were dropped."""
    forbidden: set[tuple[str, ...]] = set()
    for task in tasks:
        for one in task.load():
            forbidden.update(gram for turn in one.turns for gram in _grams(turn))
    kept, num_dropped = [], 0
    for sample in samples:
        if forbidden.isdisjoint(_grams(sample.prompt)):
            kept.append(sample)
        else:
            num_dropped += 1
    return kept, num_dropped


def truncated(sample: Sample, length: int) -> Sample:
    """The first `length` tokens."""
    return replace(sample, ids=sample.ids[:length], answer=sample.answer[:length])


def _grams(text: str) -> Iterator[tuple[str, ...]]:
    words = _WORD.findall(text.lower())
    return (tuple(words[i : i + _SHARED_GRAM]) for i in range(len(words) - _SHARED_GRAM + 1))


_ROLES: dict[str, Literal["system", "user", "assistant"]] = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
}


def _messages(line: dict[str, Any]) -> list[Message]:
    """The messages of a line in one of the forms of `GivenDialogues`; none where it has none of them."""
    if "user" in line and "assistant" in line:
        pairs = [("user", line["user"]), ("assistant", line["assistant"])]
    elif "messages" in line:
        pairs = [(one["role"], one["content"]) for one in line["messages"]]
    else:
        pairs = [(one["from"], one["value"]) for one in line.get("conversations", [])]
    return [Message(role=_ROLES[role], content=text) for role, text in pairs if role in _ROLES]


def _tokenised(messages: Sequence[Message], complete: bool, writer: Writer) -> Sample:
    """Ids of a conversation: each answer behind the prompt that the template makes of what is before it."""
    ids: list[int] = []
    answer: list[bool] = []
    end = min(writer.engine.end_token_ids, default=None)
    for place, message in enumerate(messages):
        if message.role != "assistant":
            continue
        prompt = writer.render(messages[:place])
        said = writer.encode(message.content)
        last = place + 1 == len(messages)
        if end is not None and (complete or not last):
            said = [*said, end]
        # What the template adds behind an earlier answer belongs to the next prompt.
        fresh = prompt[len(ids) :] if prompt[: len(ids)] == ids else prompt
        if fresh is prompt and ids:
            ids, answer = [], []
        ids += [*fresh, *said]
        answer += [*[False] * len(fresh), *[True] * len(said)]
    first = next((m.content for m in messages if m.role == "user"), "")
    return Sample(tuple(ids), tuple(answer), first)
