"""Texts for names and records: folder-safe names, digests and timestamps."""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from harness.system.secrets import redact_text

TARGET = "_target_"
"""Key under which a configuration node names its class, by Hydra's convention."""
_LONGEST_SLUG = 60
"""Three slugs and a digest fit into the 255 bytes of a file name."""


def now() -> str:
    """The current UTC time in ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def slug(name: str) -> str:
    """`name` for a folder or a run id: all but ASCII letters, digits, `_` and `-` become dashes.

    A name that loses letters of other scripts, loses everything or is very long ends in six hex digits of its
    digest, so that different names stay different. Secrets are left out.
    """
    # One text has several forms in Unicode.
    name = unicodedata.normalize("NFC", name)
    plain = re.sub(r"[^A-Za-z0-9_-]+", "-", redact_text(name)).strip("-")
    if name and (not name.isascii() or not plain or len(plain) > _LONGEST_SLUG):
        # A lone surrogate has no form in UTF-8.
        code = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:6]
        return f"{plain[:_LONGEST_SLUG] or 'unnamed'}-{code}"
    return plain or "unnamed"


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
