"""Tasks: chosen conversations of a source. Constructors read nothing; `load` does."""

from __future__ import annotations

import random
import re
from abc import ABC, abstractmethod
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from pydantic import Field
from typing_extensions import override

from harness.config import ConfigError, configurable, near
from harness.tasks.conversation import Conversation
from harness.tasks.jsonl import file_hash, file_source, read_conversations, read_lines, refuse_doubles

_DECIMAL = re.compile(r"[+-]?\d+(_\d+)*", re.ASCII)
DATA = Path(__file__).parent / "data"
"""Folder of the prompts that come with the harness."""
_NUM_WARMUP = 3


@configurable
class Task(ABC):
    """Base class of all tasks: `read` yields the source's conversations, `load` the chosen ones."""

    name: str
    limit: int | None = Field(default=None, ge=1)
    """Maximum number of conversations: a random subset if `seed` is set, else the first ones."""
    seed: int | None = None
    """Seed of the random subset, which keeps the order of the source."""
    ids: tuple[str, ...] = ()
    """Only conversations with these ids; empty for all."""
    categories: tuple[str, ...] = ()
    """Only conversations of these categories; empty for all."""
    history: Literal["live", "frozen"] = "live"
    """Whether later turns follow an arm's own answers (`live`) or vanilla's (`frozen`)."""
    max_turns: int | None = Field(default=None, ge=1)
    """Number of turns after which a conversation is cut."""

    @abstractmethod
    def read(self) -> list[Conversation]:
        """All conversations of the source.

        Raises:
            ConfigError: the source cannot be read, or not as conversations.
        """

    @abstractmethod
    def source(self) -> dict[str, Any]:
        """Description of the source for the manifest; JSON types."""

    def score(self, conversation: Conversation, text: str) -> float | None:
        """How good an answer to the conversation's last turn is, from 0 to 1; None where it cannot tell."""
        return None

    def warmup(self) -> list[Conversation]:
        """Prompts outside the test set, which are run before anything is timed."""
        return read_conversations(str(DATA / "warmup.jsonl"))

    def card(self) -> dict[str, Any]:
        """Description of the task for the manifest; JSON types."""
        return {"name": self.name, "history": self.history, **self.source()}

    def load(self) -> list[Conversation]:
        """The chosen conversations, in the order of the source.

        Raises:
            ConfigError: see `read`; or the task lacks a chosen id or category, or nothing is left.
        """
        every = self.read()
        if not every:
            raise ConfigError(f"task {self.name}: its source holds no conversation: {self.source()}")
        ids = [self._id_of(given, [one.id for one in every]) for given in self.ids]
        self._check_known("categories", self.categories, sorted({one.category for one in every}))
        chosen = [
            one
            for one in every
            if (not ids or one.id in ids) and (not self.categories or one.category in self.categories)
        ]
        if self.limit is not None and self.limit < len(chosen):
            indices = list(range(self.limit))
            if self.seed is not None:
                indices = sorted(random.Random(self.seed).sample(range(len(chosen)), self.limit))
            chosen = [chosen[index] for index in indices]
        if not chosen:
            raise ConfigError(f"task {self.name}: no conversation matches both task.ids and task.categories")
        return [self._shortened(one) for one in chosen]

    def _id_of(self, given: str, known: list[str]) -> str:
        """The id that was meant: Hydra reads 1_000 and +7 as numbers and writes them as 1000 and 7."""
        if given not in known and given.lstrip("-").isdecimal():
            alike = [one for one in known if _DECIMAL.fullmatch(one) and int(one) == int(given)]
            if len(alike) == 1:
                return alike[0]
        self._check_known("ids", (given,), known)
        return given

    def _check_known(self, option: str, wanted: tuple[str, ...], known: list[str]) -> None:
        for name in wanted:
            if name not in known:
                hint = near(name, known) or f" Some of them: {', '.join(known[:5])}."
                raise ConfigError(f"task.{option}: {self.name} has no {name!r}.{hint}")

    def _shortened(self, one: Conversation) -> Conversation:
        if self.max_turns is None or not one.turns:
            return one
        return replace(one, turns=one.turns[: self.max_turns])


@configurable
class JsonlTask(Task):
    """A local file with one object per line: `question_id` (or `id`), `category`, `turns` (or `prompt`)."""

    path: str

    @override
    def read(self) -> list[Conversation]:
        return read_conversations(self.path)

    @override
    def source(self) -> dict[str, Any]:
        return file_source(self.path)


@configurable
class TokenIdsTask(Task):
    """A local file with `id` and `input_ids` per line, which the target reads without a chat template."""

    path: str

    @override
    def read(self) -> list[Conversation]:
        conversations: list[Conversation] = []
        for number, data in read_lines(self.path):
            ids = data.get("input_ids")
            if "id" not in data or not isinstance(ids, list) or not ids or {type(i) for i in ids} != {int}:
                raise ConfigError(f"{self.path}:{number}: needs `id` and `input_ids`, a list of integers")
            conversations.append(Conversation(id=str(data["id"]), category="token_ids", input_ids=tuple(ids)))
        refuse_doubles(self.path, conversations)
        return conversations

    @override
    def warmup(self) -> list[Conversation]:
        """Prompts of the task in another order of their tokens, as the target may have no chat template."""
        chosen = self.load()
        known = {one.input_ids for one in chosen}
        prompts: list[Conversation] = []
        for number, one in enumerate(chosen[:_NUM_WARMUP]):
            ids = random.Random(number).sample(one.input_ids, len(one.input_ids))
            while tuple(ids) in known:
                ids.append(ids[0])
            prompts.append(replace(one, id=f"warm-up {number}", input_ids=tuple(ids)))
        return prompts

    @override
    def source(self) -> dict[str, Any]:
        return {"source": "token ids", "path": self.path, "sha256": file_hash(self.path)}
