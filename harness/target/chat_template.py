"""Chat: messages to the token ids of a prompt, by the target's template or one of ours."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2

from harness.config import ConfigError, near
from harness.target.spec import TargetSpec
from harness.tasks.conversation import Message

_TEMPLATES = Path(__file__).parent / "templates"
_DATE = "26 Jul 2024"
"""Some templates print today's date; a benchmark's prompts must be the same tomorrow."""


def render(tokenizer: Any, messages: Sequence[Message], spec: TargetSpec) -> list[int]:
    """Token ids of a conversation, up to where the assistant's next answer begins.

    Raises:
        ConfigError: there is no chat template, or it does not take these messages or fields of `spec`.
    """
    template = _template(tokenizer, spec)
    if template is None:
        raise ConfigError(
            f"target.template: {spec.name} has no chat template of its own. Type target.template=NAME "
            f"(NAME: {', '.join(_template_names())}, or a .jinja file), or use a task of token ids."
        )
    if spec.thinking is not None and not re.search(r"\benable_thinking\b", template):
        raise ConfigError(
            f"target.thinking={spec.thinking}: {spec.name}'s template has no such switch. "
            "Type target.thinking=null."
        )
    turns = [dataclasses.asdict(message) for message in messages]
    if spec.system_prompt is not None and (not turns or turns[0]["role"] != "system"):
        turns.insert(0, {"role": "system", "content": spec.system_prompt})
    switches = {} if spec.thinking is None else {"enable_thinking": spec.thinking}
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
        remedy = " Type target.system_prompt=null." if spec.system_prompt is not None else ""
        raise ConfigError(
            f"target.template={spec.template}: {spec.name}'s template refuses the messages: {error}.{remedy}"
        ) from error
    return [int(token) for token in ids]


def template_hash(tokenizer: Any, spec: TargetSpec) -> str:
    """Sixteen hex digits of whatever turns messages into a prompt: template, system prompt, thinking."""
    parts = (_template(tokenizer, spec), spec.system_prompt, spec.thinking, _DATE)
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def _template(tokenizer: Any, spec: TargetSpec) -> str | None:
    """The text of the template in use."""
    if spec.template is None:
        return tokenizer.get_chat_template() if tokenizer.chat_template else None
    named = _TEMPLATES / f"{spec.template}.jinja"
    file = named if named.is_file() else Path(spec.template).expanduser()
    if not file.is_file():
        names = _template_names()
        raise ConfigError(
            f"target.template={spec.template}: no such template.{near(spec.template, names)} "
            f"Allowed: {', '.join(names)}, or a .jinja file."
        )
    return file.read_text(encoding="utf-8")


def _template_names() -> list[str]:
    return sorted(file.stem for file in _TEMPLATES.glob("*.jinja"))
