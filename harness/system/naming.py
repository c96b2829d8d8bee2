"""Names: texts made safe for folders, digests of values, the time, secrets taken out of what is written."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

REDACTED = "<redacted>"
TARGET = "_target_"
"""Key under which a configuration node names its class, as Hydra wants it."""


# A bare `token` is a secret, `mask_token` or `max_new_tokens` is not.
_SECRET_KEY = re.compile(
    r"(^|[_.+~])(api_?key|access_key|private_key|wandb_key|secret(_key)?|passw(or)?d|credentials?"
    r"|authorization|(hf|hub|auth|access|bearer|api|wandb|github)_?token)$|(^|[.+])token$",
    re.IGNORECASE,
)


# Forty hex digits alone are a git revision as often as a W&B key, so those are judged by their key.
_SECRET_VALUE = re.compile(
    r"hf_[A-Za-z0-9]{16,}|wandb_v\d_\w{16,}|gh[pousr]_[A-Za-z0-9]{20,}|sk-[A-Za-z0-9_-]{20,}"
    r"|(?<=://)[^/\s:@]+:[^/\s@]+(?=@)"
)


def now() -> str:
    """The time in UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def slug(name: str) -> str:
    """`name` with everything that a folder name or the dots of a run id could trip over made a dash."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", name).strip("-") or "unnamed"


def digest(value: Any) -> str:
    """The sha256 of `value` (JSON types) in one canonical spelling, in hex."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def class_names(value: Any) -> Any:
    """A copy of `value` (nested dicts and lists) whose `_target_`s are class names without their modules.

    Identities are compared in this form: a module may move, the class behind it stays the same.
    """
    if isinstance(value, Mapping):
        return {
            name: item.rpartition(".")[2] if name == TARGET and isinstance(item, str) else class_names(item)
            for name, item in value.items()
        }
    return [class_names(item) for item in value] if isinstance(value, list | tuple) else value


def redact(value: Any, key: str = "") -> Any:
    """A copy of `value` (nested dicts and lists, `key=value` overrides too) with secrets replaced."""
    if isinstance(value, Mapping):
        return {name: redact(item, str(name)) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [redact(item, key) for item in value]
    if value is None or isinstance(value, bool):
        return value
    if _SECRET_KEY.search(key):
        return REDACTED if value != "" else value
    if not isinstance(value, str):
        return value
    name, equals, given = value.partition("=")
    if equals and given and _SECRET_KEY.search(name.strip()):
        return f"{name}={REDACTED}"
    return _SECRET_VALUE.sub(REDACTED, value)
