"""Lines of dialogue files as messages, in the common shapes; what has another shape is refused by field."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from harness.config import ConfigError
from harness.tasks.conversation import Message

Role = Literal["system", "user", "assistant"]
_ROLES: dict[str, Role] = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "model", "bot", "chatgpt", "ai"), "assistant"),
}
_LISTS = ("messages", "conversations", "conversation")
_PAIRS = (
    ("user", "assistant"),
    ("prompt", "completion"),
    ("prompt", "response"),
    ("instruction", "output"),
    ("instruction", "response"),
    ("question", "answer"),
    ("query", "response"),
)
_ROLE_KEYS, _TEXT_KEYS = ("role", "from"), ("content", "value", "text")
SHAPES = "prompt_ids and answer_ids, messages, conversations, or one of " + ", ".join(
    map(" and ".join, _PAIRS)
)
"""The shapes that are read, for messages."""


def messages_of(line: dict[str, Any]) -> list[Message]:
    """The messages of a line in one of the `SHAPES`.

    Raises:
        ConfigError: it has another shape, a role that is not known, or no text where one belongs; the text
            names the field.
    """
    name = next((key for key in _LISTS if line.get(key) is not None), None)
    pair = next((keys for keys in _PAIRS if all(line.get(key) is not None for key in keys)), None)
    if name is not None:
        found = _turns(line[name], name)
    elif pair is not None:
        found = [*_side(line, pair[0], "user"), *_side(line, pair[1], "assistant")]
    else:
        empty = [key for key, value in line.items() if value is None]
        null = f"; null: {', '.join(empty)}" if empty else ""
        raise ConfigError(f"needs {SHAPES}; got the keys {', '.join(line)}{null}")
    system = next((key for key in ("system", "system_prompt") if line.get(key)), None)
    if system and not (found and found[0].role == "system"):
        found = [Message(role="system", content=_text(line[system], system)), *found]
    return found


def from_question(messages: Sequence[Message]) -> list[Message]:
    """The system prompt, and the messages from the first question on, if an answer follows it."""
    begin = next((place for place, one in enumerate(messages) if one.role == "user"), len(messages))
    if not any(one.role == "assistant" for one in messages[begin:]):
        return []
    return [*(one for one in messages[:begin] if one.role == "system"), *messages[begin:]]


def _side(line: dict[str, Any], name: str, role: Role) -> list[Message]:
    """One side of a pair: a text, or messages."""
    if isinstance(line[name], list) and all(isinstance(one, dict) and "role" in one for one in line[name]):
        return _turns(line[name], name)
    text = _text(line[name], name)
    # Alpaca's form: what the instruction is about stands in a field of its own.
    if name == "instruction" and line.get("input"):
        text = f"{text}\n\n{_text(line['input'], 'input')}"
    return [Message(role=role, content=text)]


def _turns(value: Any, name: str) -> list[Message]:
    if not isinstance(value, list):
        raise ConfigError(f"{name}: needs a list, got {type(value).__name__}")
    if value and all(isinstance(one, str) for one in value):
        roles: tuple[Role, Role] = ("user", "assistant")
        return [Message(role=roles[number % 2], content=text) for number, text in enumerate(value)]
    return [_message(one, f"{name}[{number}]") for number, one in enumerate(value)]


def _message(one: Any, where: str) -> Message:
    if not isinstance(one, dict):
        raise ConfigError(f"{where}: needs an object with role and content, got {type(one).__name__}")
    role_key = next((key for key in _ROLE_KEYS if key in one), None)
    if role_key is None:
        raise ConfigError(
            f"{where}: needs a role, in {' or '.join(_ROLE_KEYS)}; got the keys {', '.join(one)}"
        )
    role = _ROLES.get(str(one[role_key]).strip().lower())
    if role is None:
        raise ConfigError(
            f"{where}.{role_key}: {one[role_key]!r} is not read, only {', '.join(_ROLES)}; leave such"
            " dialogues out, because their answers depend on it"
        )
    calls = next((key for key in ("tool_calls", "function_call") if one.get(key)), None)
    if calls is not None:
        raise ConfigError(f"{where}.{calls}: calls of tools are not read; leave such dialogues out")
    text_key = next((key for key in _TEXT_KEYS if one.get(key) is not None), None)
    if text_key is None:
        given = "null" if any(key in one for key in _TEXT_KEYS) else "missing"
        raise ConfigError(f"{where}.content: {given}; needs a text, in {' or '.join(_TEXT_KEYS)}")
    return Message(role=role, content=_text(one[text_key], f"{where}.{text_key}"))


def _text(value: Any, where: str) -> str:
    """A text, or the texts of a list of parts as OpenAI's interface has them."""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and value:
        texts = [one.get("text") if isinstance(one, dict) else one for one in value]
        for number, text in enumerate(texts):
            if not isinstance(text, str):
                raise ConfigError(f"{where}[{number}]: only parts of text are read")
        return "".join(map(str, texts))
    raise ConfigError(f"{where}: needs a text, got {type(value).__name__}")


def token_ids(line: dict[str, Any], name: str, vocab_size: int) -> list[int]:
    """The token ids in a field of a line.

    Raises:
        ConfigError: they are no list of integers, or outside the vocabulary.
    """
    ids = line.get(name)
    if not isinstance(ids, list) or any(type(one) is not int for one in ids):
        raise ConfigError(f"{name}: needs a list of integers")
    outside = next((one for one in ids if not 0 <= one < vocab_size), None)
    if outside is not None:
        raise ConfigError(f"{name}: the token {outside} is outside the vocabulary, 0..{vocab_size - 1}")
    return ids
