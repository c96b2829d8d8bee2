"""Dialogues to train on: given ones, prompts that the target answers, and questions that it asks itself.

Dialogues that the target writes are kept as token ids in a JSONL file, one per line. An interrupted run
resumes after the last line.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import Field
from typing_extensions import override

from harness.config import ConfigError, configurable
from harness.decoding.sampling import DecodingParams, Temperature
from harness.system.files import append_json
from harness.tasks.conversation import Message
from harness.tasks.jsonl import read_lines
from harness.tasks.task import Task
from harness.training.dialogue_lines import from_question, messages_of, token_ids
from harness.training.writer import Writer

_BATCHES = 4
"""Batches that are written before lines are: a batch stays full until the last of their sequences begin."""


@dataclass(frozen=True)
class Sample:
    """A dialogue as tokens."""

    ids: tuple[int, ...]
    answer: tuple[bool, ...]
    """Per token whether the assistant wrote it, end tokens included."""
    prompt: str
    """What the user wrote, one turn after the other."""
    category: str = ""
    """As the line, or the task that the prompt is from, calls its kind."""


class Question(NamedTuple):
    """What the target is asked."""

    text: str
    category: str = ""
    num_earlier: int = 0
    """How many turns of its conversation come before it: those of the questions just before it."""


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
    """A JSONL file of conversations, one per line, in any of the common forms (`dialogue_lines.SHAPES`).

    `{"prompt_ids", "answer_ids"}` (as the target wrote them), `{"user", "assistant"}` and other pairs (with
    `complete`: false where the answer was cut), or a list `messages` or `conversations` of objects with
    `role` or `from` and `content` or `value`, or of plain texts in turn.
    """

    path: str

    @override
    def read(self, writer: Writer) -> Iterator[Sample]:
        without: list[int] = []
        for number, line in read_lines(self.path, option="data.path"):
            try:
                samples = self._samples(line, writer)
            except ConfigError as error:
                raise ConfigError(f"{self.path}:{number}: {error}") from error
            without += [] if samples else [number]
            yield from samples
        if without:
            writer.note(
                f"{self.path}: {len(without)} dialogues left out, which have no answer to a question; the"
                f" first is in line {without[0]}"
            )

    def _samples(self, line: dict[str, Any], writer: Writer) -> list[Sample]:
        if "prompt_ids" in line:
            size = writer.engine.target.vocab_size
            ids = {name: token_ids(line, name, size) for name in ("prompt_ids", "answer_ids")}
            return [written_sample({**line, **ids})] if all(ids.values()) else []
        complete = line.get("complete", True)
        if not isinstance(complete, bool):
            raise ConfigError(f"complete: needs true or false, got {complete!r}")
        made = _tokenised(from_question(messages_of(line)), complete, writer)
        return [replace(sample, category=category_of(line)) for sample in made]

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
    def questions(self, writer: Writer, begin: int, count: int) -> list[Question | None]:
        """Up to `count` questions from number `begin` on, and the rest of the last one's conversation; None
        for an unusable one."""

    @override
    def read(self, writer: Writer) -> Iterator[Sample]:
        file = Path(self.out)
        file.parent.mkdir(parents=True, exist_ok=True)
        known = list(read_lines(self.out)) if file.exists() else []
        yield from (written_sample(line) for _, line in known if line["answer_ids"])
        num_done = len(known)
        while num_done < self.num:
            begin = time.monotonic()
            lines = self._more(writer, num_done, min(_BATCHES * self.batch_size, self.num - num_done))
            if not lines:
                return
            append_json(file, lines)
            num_done += len(lines)
            num_tokens = sum(len(line["answer_ids"]) for line in lines)
            rate = num_tokens / (time.monotonic() - begin)
            writer.note(
                f"{num_done} of {self.num} dialogues written, the last {num_tokens} answer tokens at"
                f" {rate:.0f} tokens/s, in {self.out}"
            )
            yield from (written_sample(line) for line in lines if line["answer_ids"])

    def _more(self, writer: Writer, begin: int, count: int) -> list[dict[str, Any]]:
        """The next lines; one without an answer for an unusable question."""
        asked = self.questions(writer, begin, count)
        params = DecodingParams(
            name="answers",
            temperature=self.temperature,
            max_new_tokens=self.max_answer_tokens,
            seeds=(self.seed,),
        )
        conversations: list[list[Message]] = [[] for _ in asked]
        prompts: list[list[int]] = [[] for _ in asked]
        answers: list[list[int]] = [[] for _ in asked]
        # First turns together, then second turns, which quote the first answers.
        for turn in sorted({one.num_earlier for one in asked if one}):
            places = []
            for place, one in enumerate(asked):
                if one is None or one.num_earlier != turn:
                    continue
                places.append(place)
                said = Message(role="assistant", content=writer.decode(answers[place - 1]))
                earlier = [*conversations[place - 1], said] if turn else []
                conversations[place] = [*earlier, Message(role="user", content=one.text)]
                prompts[place] = writer.render(conversations[place])
            named = [(f"answer {begin + place}", prompts[place]) for place in places]
            made = writer.write(named, params, self.batch_size)
            for place, answer in zip(places, made, strict=True):
                answers[place] = answer
        return [
            {
                "user": "\n".join(said.content for said in conversations[place] if said.role == "user")
                or None,
                "assistant": writer.decode(answers[place]),
                "prompt_ids": prompts[place],
                "answer_ids": answers[place],
                **({"category": one.category} if one and one.category else {}),
            }
            for place, one in enumerate(asked)
        ]


@configurable
class AnsweredPrompts(WrittenDialogues):
    """All turns of a task's conversations (a local JSONL, a hub data set), answered by the target.

    Each answer is a dialogue of its own, behind the turns and answers before it.
    """

    task: Task

    @override
    def questions(self, writer: Writer, begin: int, count: int) -> list[Question | None]:
        if not hasattr(self, "_known"):
            self._known = [
                Question(text, one.category, turn)
                for one in self.task.load()
                for turn, text in enumerate(one.turns)
            ]
        end = begin + count
        while end < len(self._known) and self._known[end].num_earlier:
            end += 1
        return list(self._known[begin:end])

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
    def questions(self, writer: Writer, begin: int, count: int) -> list[Question | None]:
        params = DecodingParams(
            name="questions",
            temperature=self.user_temperature,
            max_new_tokens=self.max_user_tokens,
            seeds=(self.seed,),
        )
        prefix = writer.user_prefix()
        named = [(f"question {begin + i}", prefix) for i in range(count)]
        made = writer.write(named, params, self.batch_size)
        ended = [ids[-1] in writer.engine.end_token_ids for ids in made]
        texts = [writer.decode(ids).strip() for ids in made]
        return [Question(text) if text and whole else None for text, whole in zip(texts, ended, strict=True)]

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
    return Sample((*prompt, *answer), marks, str(line.get("user", "")), category_of(line))


def category_of(line: dict[str, Any]) -> str:
    """The kind of a line's dialogue, under the names that data sets use."""
    return str(next((line[name] for name in ("category", "kind", "source") if line.get(name)), ""))


def truncated(sample: Sample, length: int) -> Sample:
    """The sample cut to its first `length` tokens."""
    return replace(sample, ids=sample.ids[:length], answer=sample.answer[:length])


def _tokenised(messages: Sequence[Message], complete: bool, writer: Writer) -> Iterator[Sample]:
    """The dialogue as tokens: each answer follows the templated prompt of all turns before it.

    Where a template writes earlier answers otherwise than they were given (without their thoughts, say), the
    sample ends and another one begins with that prompt, so that every answer is marked in one of them.
    """
    ids: list[int] = []
    answer: list[bool] = []
    asked = "\n".join(message.content for message in messages if message.role == "user")
    for place, message in enumerate(messages):
        if message.role != "assistant":
            continue
        prompt = writer.render(messages[:place])
        said = writer.encode(message.content)
        last = place + 1 == len(messages)
        if writer.answer_end is not None and (complete or not last):
            said = [*said, writer.answer_end]
        if prompt[: len(ids)] != ids:
            yield Sample(tuple(ids), tuple(answer), asked)
            ids, answer = [], []
        # Tokens that the template adds after an earlier answer belong to the next prompt.
        fresh = prompt[len(ids) :]
        ids += [*fresh, *said]
        answer += [*[False] * len(fresh), *[True] * len(said)]
    if ids:
        yield Sample(tuple(ids), tuple(answer), asked)
