"""The chat format of a target: how messages become the token ids of a prompt, and what ends an answer."""

from __future__ import annotations

import dataclasses
import hashlib
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import FrameType
from typing import Any

import jinja2

from harness.config import ConfigError, near
from harness.tasks.conversation import Message

_TEMPLATES = Path(__file__).parent / "templates"
NOW = datetime(2024, 7, 26)
"""The only time that a template can read: some print today's date, and a benchmark's prompts must be the same
tomorrow."""
_DATE = "26 Jul 2024"
_COMPILED = "<template>"
"""The file name that jinja gives a compiled template."""
_MAX_LINES = 1_000_000
"""Lines of its own that a template may run; a long conversation takes some thousands."""


@dataclass(frozen=True, kw_only=True)
class ChatFormat:
    """The part of a `TargetSpec` that says how the model is prompted; its fields are documented there."""

    name: str
    template: str | None
    system_prompt: str | None
    thinking: bool | None
    stop_tokens: tuple[str, ...]

    def end_tokens(self, model: Any, tokenizer: Any) -> tuple[int, ...]:
        """The ids of the tokens that end an answer, sorted: the model's own and `stop_tokens`.

        Raises:
            ConfigError: a stop token is not one token of the vocabulary.
        """
        own = model.generation_config.eos_token_id if model.generation_config is not None else None
        ids = {tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])} - {None}
        vocab = tokenizer.get_vocab()
        for token in self.stop_tokens:
            if token not in vocab:
                close = near(token, tokenizer.get_added_vocab())
                raise ConfigError(
                    f"target.stop_tokens: {token!r} is not one token of {self.name}.{close} "
                    "Allowed: any entry of its vocabulary."
                )
            ids.add(vocab[token])
        return tuple(sorted(ids))


def render(tokenizer: Any, messages: Sequence[Message], chat: ChatFormat) -> list[int]:
    """Token ids of a conversation, up to where the assistant's next answer begins.

    Raises:
        ConfigError: there is no chat template, or it does not take these messages or fields of `chat`.
    """
    template = _template(tokenizer, chat)
    if template is None:
        raise ConfigError(
            f"target.template: {chat.name} has no chat template of its own. Type target.template=NAME "
            f"(NAME: {', '.join(_template_names())}, or a .jinja file), or use a task of token ids."
        )
    if chat.thinking is not None and not re.search(r"\benable_thinking\b", template):
        raise ConfigError(
            f"target.thinking={chat.thinking}: {chat.name}'s template has no such switch. "
            "Type target.thinking=null."
        )
    turns = [dataclasses.asdict(message) for message in messages]
    if chat.system_prompt is not None and (not turns or turns[0]["role"] != "system"):
        turns.insert(0, {"role": "system", "content": chat.system_prompt})
    switches = {} if chat.thinking is None else {"enable_thinking": chat.thinking}
    try:
        _stop_clock(template)
        with _bounded():
            ids = tokenizer.apply_chat_template(
                turns,
                chat_template=template,
                add_generation_prompt=True,
                tokenize=True,
                return_dict=False,
                date_string=_DATE,
                **switches,
            )
    except Exception as error:  # templates come from anywhere, and may raise whatever Python can raise
        remedy = " Type target.system_prompt=null." if chat.system_prompt is not None else ""
        raise ConfigError(
            f"target.template={chat.template}: {chat.name}'s template refuses the messages:"
            f" {_reason(error)}.{remedy}"
        ) from error
    return [int(token) for token in ids]


def _stop_clock(template: str) -> None:
    """Give a template `NOW` for the time of day.

    transformers passes no functions from its callers to a template, so that of the environment is replaced,
    which is kept with the compiled template.
    """
    from transformers.utils.chat_template_utils import _compile_jinja_template

    compiled = _compile_jinja_template(template)
    compiled.environment.globals["strftime_now"] = NOW.strftime


def _reason(error: Exception) -> str:
    """The text of an error, with its class where it is not one of jinja's."""
    text = str(error) or "no reason given"
    return text if isinstance(error, jinja2.TemplateError) else f"{type(error).__name__}: {text}"


@contextmanager
def _bounded() -> Iterator[None]:
    """Stop a template that would run for hours.

    jinja's sandbox bounds a single `range`, but no loops within loops and no macros that call themselves. A
    compiled template is Python code in a file of its own name, so its lines can be counted as they run.
    """
    num_left = _MAX_LINES

    def count(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal num_left
        if frame.f_code.co_filename != _COMPILED:
            return None
        num_left -= 1
        if num_left < 0:
            raise jinja2.TemplateRuntimeError(f"it ran more than {_MAX_LINES:,} of its lines")
        return count

    before = sys.gettrace()
    sys.settrace(count)
    try:
        yield
    finally:
        sys.settrace(before)


def template_hash(tokenizer: Any, chat: ChatFormat) -> str:
    """Sixteen hex digits over all that shapes a prompt: template, system prompt, thinking and date."""
    parts = (_template(tokenizer, chat), chat.system_prompt, chat.thinking, _DATE)
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def _template(tokenizer: Any, chat: ChatFormat) -> str | None:
    """The text of the template in use."""
    if chat.template is None:
        return tokenizer.get_chat_template() if tokenizer.chat_template else None
    named = _TEMPLATES / f"{chat.template}.jinja"
    file = named if named.is_file() else Path(chat.template).expanduser()
    if not file.is_file():
        names = _template_names()
        raise ConfigError(
            f"target.template={chat.template}: no such template.{near(chat.template, names)} "
            f"Allowed: {', '.join(names)}, or a .jinja file."
        )
    return file.read_text(encoding="utf-8")


def _template_names() -> list[str]:
    return sorted(file.stem for file in _TEMPLATES.glob("*.jinja"))
