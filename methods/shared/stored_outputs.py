"""Outputs that runs have stored, as the text that a method drafts from."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from harness.config import ConfigError


def read_outputs(path: str, option: str = "", vocab_size: int | None = None) -> Iterator[list[int]]:
    """The `output_ids` of every line of a JSONL file, such as the records.jsonl of a run; blank lines are
    skipped.

    option: what was typed before the path, as `corpus_path=`, for messages.
    vocab_size: of the target; None: any number from 0 is a token id.

    Raises:
        ConfigError: the file is missing, or a line, named by its number, has no such ids or ids outside the
            vocabulary.
    """
    file = Path(path)
    if not file.is_file():
        raise ConfigError(f"{option}{path}: no such file; the records.jsonl of a run would do")
    # Not `splitlines`: U+2028 and similar characters may be unescaped in JSON, and end no line of JSONL.
    for number, line in enumerate(file.read_bytes().split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            yield _ids(line, vocab_size)
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ConfigError(
                f"{option}{path}:{number}: needs `output_ids`, a list of token ids"
                f" ({type(error).__name__}: {error})"
            ) from error


def _ids(line: bytes, vocab_size: int | None) -> list[int]:
    ids = json.loads(line.decode("utf-8"))["output_ids"]
    if not isinstance(ids, list) or any(type(token) is not int or token < 0 for token in ids):
        raise ValueError("ids are whole numbers from 0")
    if vocab_size is not None and max(ids, default=0) >= vocab_size:
        raise ValueError(f"got {max(ids)}; the target's vocabulary is 0..{vocab_size - 1}")
    return ids
