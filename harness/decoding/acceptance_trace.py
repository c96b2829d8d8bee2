"""Traces of acceptance: the accepted lengths of recorded rounds, read from a file or a run folder."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from harness.config import ConfigError

_RECORDS = "records.jsonl"
"""The records in the folder of a finished run: one JSON object per generation."""


def read_trace(path: str, arm: str | None = None) -> list[int]:
    """Accepted lengths of rounds, in order; see `Forced.trace`.

    Raises:
        ConfigError: the file is missing or malformed; the text says where.
    """
    place = Path(path).expanduser()
    file = place / _RECORDS if place.is_dir() else place
    if not file.is_file():
        raise ConfigError(
            f"acceptor.trace={path}: neither the folder of a finished run (with {_RECORDS}) nor a file of"
            " JSON or JSONL"
        )
    found = [(name, lengths) for name, lengths in _entries(file) if lengths]
    # An arm that accepted nothing in the whole run, as vanilla, is no trace.
    arms = sorted({name for name, lengths in found if name and any(lengths)})
    if arm is None and len(arms) > 1:
        raise ConfigError(f"acceptor.trace={path}: holds {', '.join(arms)}; choose with acceptor.arm=NAME")
    wanted = arm or (arms[0] if arms else None)
    lengths = [length for name, accepted in found if name == wanted for length in accepted]
    if not lengths:
        holds = f"it holds {', '.join(arms)}" if arms else "it holds none"
        raise ConfigError(f"acceptor.trace={path}: no accepted lengths of {wanted or 'any arm'}; {holds}")
    return lengths


def _entries(file: Path) -> Iterator[tuple[str | None, list[int]]]:
    """The arm, where a file names it, and the accepted lengths, for every list or object in the file."""
    text = file.read_text(encoding="utf-8")
    parts: Iterable[tuple[int, str]] = (
        [(1, text)] if file.suffix == ".json" else enumerate(text.splitlines(), start=1)
    )
    for number, part in parts:
        try:
            value = json.loads(part)
            many = value if isinstance(value, list) and value and not isinstance(value[0], int) else [value]
            for one in many:
                if isinstance(one, dict) and one.get("repeat"):
                    continue
                name, lengths = (one.get("arm"), one["accepted"]) if isinstance(one, dict) else (None, one)
                if not isinstance(lengths, list) or any(type(n) is not int or n < 0 for n in lengths):
                    raise ValueError("lengths must be integers from 0")
                yield name, lengths
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"acceptor.trace={file}:{number}: needs a list of accepted lengths, or an object with such a"
                f" list `accepted` ({error})"
            ) from error
