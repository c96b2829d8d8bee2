"""Texts for names and records: folder-safe names, digests, timestamps, and redaction of secrets."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

REDACTED = "<redacted>"
"""Replacement for a secret."""
TARGET = "_target_"
"""Key under which a configuration node names its class, by Hydra's convention."""

# A bare `token` is a secret, `mask_token` or `max_new_tokens` is not.
_SECRET_KEY = re.compile(
    r"(^|[_.+~])(api_?key|access_key|private_key|wandb_key|secret(_key)?|passw(or)?d|credentials?"
    r"|authorization|(hf|hub|auth|access|bearer|api|wandb|github)_?token)$|(^|[.+])token$",
    re.IGNORECASE,
)
# Forty hex digits may be a git revision as well as a W&B key, so they are judged by their key alone.
_SECRET_VALUE = re.compile(
    r"hf_[A-Za-z0-9]{16,}|wandb_v\d_\w{16,}|gh[pousr]_[A-Za-z0-9]{20,}|sk-[A-Za-z0-9_-]{20,}"
    r"|(?<=://)[^/\s:@]+:[^/\s@]+(?=@)"
)


def now() -> str:
    """The current UTC time in ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def slug(name: str) -> str:
    """`name` for a folder or a run id: all but letters, digits, `_` and `-` become dashes."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", name).strip("-") or "unnamed"


def digest(value: Any) -> str:
    """The SHA-256, in hex, of the canonical JSON of `value` (JSON types)."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def class_names(value: Any) -> Any:
    """A copy of `value` (nested dicts and lists) whose `_target_` entries are class names without modules.

    Identities are compared in this form, so that a class may move to another module.
    """
    if isinstance(value, Mapping):
        return {
            name: item.rpartition(".")[2] if name == TARGET and isinstance(item, str) else class_names(item)
            for name, item in value.items()
        }
    return [class_names(item) for item in value] if isinstance(value, list | tuple) else value


def redact(value: Any, key: str = "") -> Any:
    """A copy of `value` (nested dicts and lists, also of `key=value` overrides) with secrets replaced.

    key: the key that `value` has in its parent, by which secrets are recognised.
    """
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
