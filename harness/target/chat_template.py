"""The chat format of a target: how messages become the token ids of a prompt, and what ends an answer."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from harness.config import ConfigError, near
from harness.tasks.conversation import Message

_TEMPLATES = Path(__file__).parent / "templates"
_DATE = "26 Jul 2024"
"""Some templates print today's date; a benchmark's prompts must be the same tomorrow."""


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
        ids = tokenizer.apply_chat_template(
            turns,
            chat_template=template,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=False,
            date_string=_DATE,
            **switches,
        )
    except jinja2.TemplateError as error:
        remedy = " Type target.system_prompt=null." if chat.system_prompt is not None else ""
        raise ConfigError(
            f"target.template={chat.template}: {chat.name}'s template refuses the messages: {error}.{remedy}"
        ) from error
    return [int(token) for token in ids]


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
