"""Tasks: where conversations come from. Constructors read nothing; `load` does."""

from __future__ import annotations

import hashlib
import json
import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from harness.config import ConfigError, configurable, near
from harness.tasks.conversation import Conversation

DATA = Path(__file__).parent / "data"
"""The prompts that come with the harness."""


@configurable
class Task(ABC):
    """Base of all tasks.

    limit: at most so many; with `seed` a random subset (in the task's order), else the first ones.
    ids, categories: only these. history: `live` prompts continue an arm's own answers, `frozen` vanilla's.
    max_turns: later turns are left out.
    """

    name: str
    limit: int | None = Field(default=None, ge=1)
    seed: int | None = None
    ids: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    history: Literal["live", "frozen"] = "live"
    max_turns: int | None = Field(default=None, ge=1)

    @abstractmethod
    def read(self) -> list[Conversation]:
        """Every conversation of the source."""

    @abstractmethod
    def source(self) -> dict[str, Any]:
        """Where they come from; JSON types."""

    def warmup(self) -> list[Conversation]:
        """Prompts outside the test set, to run before the clock counts."""
        return read_conversations(str(DATA / "warmup.jsonl"))

    def card(self) -> dict[str, Any]:
        """For the manifest; JSON types."""
        return {"name": self.name, "history": self.history, **self.source()}

    def load(self) -> list[Conversation]:
        """The chosen conversations.

        Raises:
            ConfigError: an id or a category that the task does not have, or nothing left.
        """
        found = self.read()
        if not found:
            raise ConfigError(f"task {self.name}: its source holds no conversation: {self.source()}")
        self._known("ids", self.ids, [one.id for one in found])
        self._known("categories", self.categories, sorted({one.category for one in found}))
        chosen = [
            one
            for one in found
            if (not self.ids or one.id in self.ids)
            and (not self.categories or one.category in self.categories)
        ]
        if self.limit is not None and self.limit < len(chosen):
            places = list(range(self.limit))
            if self.seed is not None:
                places = sorted(random.Random(self.seed).sample(range(len(chosen)), self.limit))
            chosen = [chosen[place] for place in places]
        if not chosen:
            raise ConfigError(f"task {self.name}: no conversation has both task.ids and task.categories")
        return [self._shortened(one) for one in chosen]

    def _known(self, option: str, wanted: tuple[str, ...], known: list[str]) -> None:
        for name in wanted:
            if name not in known:
                hint = near(name, known) or f" Some of them: {', '.join(known[:5])}."
                raise ConfigError(f"task.{option}: {self.name} has no {name!r}.{hint}")

    def _shortened(self, one: Conversation) -> Conversation:
        if self.max_turns is None or not one.turns:
            return one
        return Conversation(id=one.id, category=one.category, turns=one.turns[: self.max_turns])


@configurable
class JsonlTask(Task):
    """A local file with one object a line: `question_id` (or `id`), `category`, `turns` (or `prompt`)."""

    path: str

    def read(self) -> list[Conversation]:
        """See `Task`."""
        return read_conversations(self.path)

    def source(self) -> dict[str, Any]:
        """See `Task`."""
        return file_source(self.path)


@configurable
class TokenIdsTask(Task):
    """A local file with one object a line: `id` and `input_ids`, given to the target without a template."""

    path: str

    def read(self) -> list[Conversation]:
        """See `Task`."""
        found: list[Conversation] = []
        for number, data in lines_of(self.path):
            ids = data.get("input_ids")
            if "id" not in data or not isinstance(ids, list) or not ids or {type(i) for i in ids} != {int}:
                raise ConfigError(f"{self.path}:{number}: needs `id` and `input_ids`, a list of integers")
            found.append(Conversation(id=str(data["id"]), category="token_ids", input_ids=tuple(ids)))
        _refuse_doubles(self.path, found)
        return found

    def source(self) -> dict[str, Any]:
        """See `Task`."""
        return {"source": "token ids", "path": self.path, "sha256": file_hash(self.path)}


def read_conversations(
    path: str, other: Callable[[int, dict[str, Any]], Conversation] | None = None
) -> list[Conversation]:
    """Conversations of a JSONL file: `question_id` (or `id`), `category`, `turns` (or `prompt`).

    other: reads a row (its number, counted from 0, and its columns) that does not have these keys.

    Raises:
        ConfigError: what `lines_of` raises, a line without these keys, an id that stands there twice.
    """
    found: list[Conversation] = []
    for number, data in lines_of(path):
        one, needed = _common_form(data), "`question_id` and `turns`, a list of texts"
        if one is None and other is not None:
            try:
                one = other(number - 1, data)
            except KeyError as error:
                needed += f", or the column {error}"
        if one is None:
            raise ConfigError(f"{path}:{number}: needs {needed}; got the keys {', '.join(data)}")
        found.append(one)
    _refuse_doubles(path, found)
    return found


def _common_form(data: dict[str, Any]) -> Conversation | None:
    turns: Any = data.get("turns", [data["prompt"]] if "prompt" in data else None)
    identity = data.get("question_id", data.get("id"))
    if identity is None or not isinstance(turns, list) or not turns:
        return None
    if not all(isinstance(turn, str) for turn in turns):
        return None
    return Conversation(id=str(identity), category=str(data.get("category", "")), turns=tuple(turns))


def file_source(path: str) -> dict[str, Any]:
    """What a card says of a local file."""
    return {"source": "file", "path": path, "sha256": file_hash(path)}


def file_hash(path: str | Path) -> str:
    """Sixteen hex digits of the SHA-256 over a file."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16]


def lines_of(path: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line numbers (from 1) and objects of a JSONL file; blank lines are passed over.

    Raises:
        ConfigError: a missing file or a line that is no JSON object, by number.
    """
    file = Path(path)
    if not file.is_file():
        raise ConfigError(f"task.path={path}: no such file; give a JSONL file, one conversation a line")
    # Not `splitlines`: JSON texts may hold U+2028 and its like unescaped, which end no line of JSONL.
    for number, line in enumerate(file.read_bytes().split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            data = json.loads(line.decode("utf-8"))
        except (UnicodeDecodeError, json.JSONDecodeError) as error:
            raise ConfigError(f"{path}:{number}: not JSON in UTF-8: {error}") from error
        if not isinstance(data, dict):
            raise ConfigError(f"{path}:{number}: needs a JSON object, got {type(data).__name__}")
        yield number, data


def _refuse_doubles(path: str, found: list[Conversation]) -> None:
    seen: set[str] = set()
    for one in found:
        if one.id in seen:
            raise ConfigError(f"{path}: the id {one.id!r} stands there twice")
        seen.add(one.id)
