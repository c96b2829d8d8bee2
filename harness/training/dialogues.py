"""Dialogues to train on: given ones, prompts that the target answers, and questions that it asks itself.

Dialogues that the target writes are kept as token ids in a JSONL file, one per line. An interrupted run
resumes after the last line.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import Field
from typing_extensions import override

from harness.config import ConfigError, configurable
from harness.decoding.acceptance import Coupled
from harness.decoding.batch import Request
from harness.decoding.loop import LocalEngine
from harness.decoding.sampling import DecodingParams, Temperature, stream_key
from harness.drafting.drafter import Drafter
from harness.system.files import append_json
from harness.tasks.conversation import Message
from harness.tasks.jsonl import read_lines
from harness.tasks.task import Task


@dataclass(frozen=True)
class Sample:
    """A dialogue as tokens."""

    ids: tuple[int, ...]
    answer: tuple[bool, ...]
    """Per token whether the assistant wrote it, end tokens included."""
    prompt: str
    """The text of the first question."""


@dataclass(frozen=True, kw_only=True)
class Writer:
    """The target as the author of dialogues."""

    engine: LocalEngine
    drafter: Drafter
    """A bound method that makes writing faster; the text is the target's own whatever it drafts."""
    render: Callable[[Sequence[Message]], list[int]]
    """Messages to the ids of a prompt."""
    decode: Callable[[Sequence[int]], str]
    encode: Callable[[str], list[int]]
    note: Callable[[str], None]
    """Takes a line for people."""

    def write(self, prompts: Sequence[tuple[str, list[int]]], params: DecodingParams) -> list[list[int]]:
        """The target's continuations of a batch of prompts, each given with the name of its random stream."""
        requests = [Request(prompt=ids, key=stream_key(params.seeds[0], name, 0, 0)) for name, ids in prompts]
        made = self.engine.generate(requests, self.drafter, params, Coupled())
        return [one.output_ids for one in made]

    def user_prefix(self) -> list[int]:
        """The ids that the chat template puts before the text of a user's first turn."""
        one, other = (self.render([Message(role="user", content=text)]) for text in ("A", "7"))
        place = next(i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)
        return one[:place]


@configurable
class Dialogues(ABC):
    """Base of all sources."""

    limit: int | None = Field(default=None, ge=1)
    """Largest number of dialogues that are used; None: all."""

    @abstractmethod
    def read(self, writer: Writer) -> Iterator[Sample]:
        """Yield the dialogues; this takes hours where the target has to write them first."""

    @abstractmethod
    def card(self) -> dict[str, Any]:
        """The origin of the dialogues, in JSON types."""

    def load(self, writer: Writer) -> list[Sample]:
        """Read up to `limit` dialogues.

        Raises:
            ConfigError: there is none.
        """
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
    """A JSONL file of conversations, one per line, in any of the common forms.

    `{"prompt_ids", "answer_ids"}` (as the target wrote them), `{"user", "assistant"}` (with `complete`: false
    where the answer was cut), `{"messages": [{"role", "content"}]}`, or ShareGPT's
    `{"conversations": [{"from", "value"}]}`.
    """

    path: str

    @override
    def read(self, writer: Writer) -> Iterator[Sample]:
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

    @override
    def card(self) -> dict[str, Any]:
        return {"source": "given dialogues", "file": Path(self.path).name}


@configurable
class WrittenDialogues(Dialogues):
    """Base of sources that the target writes."""

    out: str
    """The JSONL file."""
    num: int = Field(ge=1)
    """Number of dialogues to write."""
    batch_size: int = Field(default=32, ge=1)
    """Dialogues that are written together."""
    seed: int = 0
    """Seed of the sampling."""
    max_answer_tokens: int = Field(default=256, ge=2)
    """Longer answers are cut here."""
    temperature: Temperature = 0.0

    @abstractmethod
    def questions(self, writer: Writer, begin: int, count: int) -> list[str | None]:
        """Up to `count` questions from number `begin` on; None for an unusable one."""

    @override
    def read(self, writer: Writer) -> Iterator[Sample]:
        file = Path(self.out)
        file.parent.mkdir(parents=True, exist_ok=True)
        known = list(read_lines(self.out)) if file.exists() else []
        yield from (written_sample(line) for _, line in known if line["answer_ids"])
        num_done = len(known)
        while num_done < self.num:
            lines = self._more(writer, num_done, min(self.batch_size, self.num - num_done))
            if not lines:
                return
            append_json(file, lines)
            num_done += len(lines)
            num_tokens = sum(len(line["answer_ids"]) for line in lines)
            writer.note(
                f"{num_done} of {self.num} dialogues written, the last {num_tokens} tokens in {self.out}"
            )
            yield from (written_sample(line) for line in lines if line["answer_ids"])

    def _more(self, writer: Writer, begin: int, count: int) -> list[dict[str, Any]]:
        """The next lines; one without an answer for an unusable question."""
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

    @override
    def questions(self, writer: Writer, begin: int, count: int) -> list[str | None]:
        if not hasattr(self, "_known"):
            self._known = [one.turns[0] for one in self.task.load() if one.turns]
        return list(self._known[begin : begin + count])

    @override
    def card(self) -> dict[str, Any]:
        answered = {"temperature": self.temperature, "max_answer_tokens": self.max_answer_tokens}
        return {"source": "prompts answered by the target", "prompts": self.task.card(), **answered}


@configurable
class SelfSynthesised(WrittenDialogues):
    """The target writes the user's turn from its bare chat prefix, then answers (Magpie: arXiv 2406.08464).

    This works offline for any chat model.
    """

    user_temperature: Temperature = Field(default=0.9, gt=0)
    """Temperature at which questions are sampled."""
    max_user_tokens: int = Field(default=128, ge=4)
    """Longer questions are discarded."""

    @override
    def questions(self, writer: Writer, begin: int, count: int) -> list[str | None]:
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

    @override
    def card(self) -> dict[str, Any]:
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

    @override
    def read(self, writer: Writer) -> Iterator[Sample]:
        for part in self.parts.values():
            yield from part.load(writer)

    @override
    def card(self) -> dict[str, Any]:
        return {"source": "mixed", "parts": {name: part.card() for name, part in self.parts.items()}}


def written_sample(line: dict[str, Any]) -> Sample:
    """The sample in a line that the target wrote."""
    prompt, answer = line["prompt_ids"], line["answer_ids"]
    marks = (*[False] * len(prompt), *[True] * len(answer))
    return Sample((*prompt, *answer), marks, str(line.get("user", "")))


def truncated(sample: Sample, length: int) -> Sample:
    """The sample cut to its first `length` tokens."""
    return replace(sample, ids=sample.ids[:length], answer=sample.answer[:length])


_ROLES: dict[str, Literal["system", "user", "assistant"]] = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
}


def _messages(line: dict[str, Any]) -> list[Message]:
    """The messages of a line in one of the forms of `GivenDialogues`; empty for any other form."""
    if "user" in line and "assistant" in line:
        pairs = [("user", line["user"]), ("assistant", line["assistant"])]
    elif "messages" in line:
        pairs = [(one["role"], one["content"]) for one in line["messages"]]
    else:
        pairs = [(one["from"], one["value"]) for one in line.get("conversations", [])]
    return [Message(role=_ROLES[role], content=text) for role, text in pairs if role in _ROLES]


def _tokenised(messages: Sequence[Message], complete: bool, writer: Writer) -> Sample:
    """The ids of a conversation: each answer follows the templated prompt of all turns before it."""
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
        # Tokens that the template adds after an earlier answer belong to the next prompt.
        fresh = prompt[len(ids) :] if prompt[: len(ids)] == ids else prompt
        if fresh is prompt and ids:
            ids, answer = [], []
        ids += [*fresh, *said]
        answer += [*[False] * len(fresh), *[True] * len(said)]
    first = next((m.content for m in messages if m.role == "user"), "")
    return Sample(tuple(ids), tuple(answer), first)
