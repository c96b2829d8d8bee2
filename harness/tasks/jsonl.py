"""JSONL files of conversations: reading, checking and hashing them."""

from __future__ import annotations

import codecs
import hashlib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from harness.config import ConfigError
from harness.tasks.conversation import Conversation


def read_conversations(
    path: str, other: Callable[[int, dict[str, Any]], Conversation] | None = None
) -> list[Conversation]:
    """Read a file in the common form: per line `question_id` (or `id`), `category` (or `kind`), and `turns`
    (or `prompt`).

    other: reads a row that is not in the common form, given its number (from 0) and its columns.

    Raises:
        ConfigError: see `read_lines`; or a line lacks these keys, or an id appears twice.
    """
    conversations: list[Conversation] = []
    for number, data in read_lines(path):
        one, needed = _common_form(data), "`question_id` and `turns`, a list of texts"
        if one is None and other is not None:
            try:
                one = other(number - 1, data)
            except KeyError as error:
                needed += f", or the column {error}"
        if one is None:
            raise ConfigError(f"{path}:{number}: needs {needed}; got the keys {', '.join(data)}")
        conversations.append(one)
    refuse_doubles(path, conversations)
    return conversations


def _common_form(data: dict[str, Any]) -> Conversation | None:
    """A line of the common form as a conversation; None for another form."""
    turns: Any = data.get("turns", [data["prompt"]] if "prompt" in data else None)
    identity = data.get("question_id", data.get("id"))
    if identity is None or not isinstance(turns, list) or not turns:
        return None
    if not all(isinstance(turn, str) for turn in turns):
        return None
    answer = data.get("answer")
    return Conversation(
        id=str(identity),
        category=str(data.get("category", data.get("kind", ""))),
        turns=tuple(turns),
        answer=answer if isinstance(answer, str) else "",
    )


def read_lines(path: str, option: str = "task.path") -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield line number (from 1) and object of every line of a JSONL file; blank lines are skipped.

    option: the setting that names the file, for messages.

    Raises:
        ConfigError: the file is missing, or a line, named by its number, is not a JSON object of valid text.
    """
    file = Path(path)
    if not file.is_file():
        raise ConfigError(f"{option}={path}: no such file; give a JSONL file with one conversation per line")
    # Not `splitlines`: U+2028 and similar characters may be unescaped in JSON, and end no line of JSONL.
    for number, line in enumerate(file.read_bytes().split(b"\n"), start=1):
        # Windows marks a file as UTF-8 by its first character.
        line = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
        if not line.strip():
            continue
        try:
            data = json.loads(line.decode("utf-8"))
        except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
            raise ConfigError(f"{path}:{number}: not JSON in UTF-8: {error}") from error
        if (found := _SURROGATE.search(line)) and _has_half(data):
            raise ConfigError(
                f"{path}:{number}: holds half of a character, which is no text (a surrogate without its other"
                f" half, as {found[0].decode()}); remove it"
            )
        if not isinstance(data, dict):
            raise ConfigError(f"{path}:{number}: needs a JSON object, got {type(data).__name__}")
        yield number, data


_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F][0-9a-fA-F]{2}")
"""The escape of half a character of UTF-16; two of them may make a whole one."""


def _has_half(data: Any) -> bool:
    """Whether a text in `data` holds half of a character."""
    try:
        json.dumps(data, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return True
    return False


def refuse_doubles(path: str, conversations: Sequence[Conversation]) -> None:
    """Raise ConfigError if two conversations of a file have the same id."""
    seen: set[str] = set()
    for one in conversations:
        if one.id in seen:
            raise ConfigError(f"{path}: the id {one.id!r} appears twice")
        seen.add(one.id)


def file_source(path: str) -> dict[str, Any]:
    """The description of a local file as the source of a task; JSON types."""
    return {"source": "file", "path": path, "sha256": file_hash(path)}


def file_hash(path: str | Path) -> str:
    """The first sixteen hex digits of a file's SHA-256."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16]
