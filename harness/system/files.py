"""Writing: the functions through which every text leaves the process; they take secrets out of it.

Whole files are written atomically: a crash leaves the whole file or none.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from harness.system.secrets import redact_text, redact_values

PART = ".part"
"""Suffix of a file that is still being written."""


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` in UTF-8, atomically and without secrets; line ends stay as they are."""
    write_whole(path, redact_text(text).encode("utf-8", "backslashreplace"))


def write_json(path: Path, document: Any, indent: int | None = None) -> None:
    """Write `document`, JSON types, to `path` and end it with a line feed; atomically and without secrets."""
    write_whole(path, _line(document, indent).encode())


def append_json(path: Path, lines: Iterable[Any]) -> None:
    """Append `lines`, JSON types, to a JSON Lines file without secrets; they are on disk on return."""
    with path.open("ab") as stream:
        stream.write("".join(_line(line, None) for line in lines).encode())
        stream.flush()
        os.fsync(stream.fileno())


def print_json(document: Any, indent: int | None = None, allow_nan: bool = True) -> None:
    """Print `document`, JSON types, as the last line on stdout, without secrets."""
    print(_line(document, indent, allow_nan), end="", flush=True)


def _line(document: Any, indent: int | None, allow_nan: bool = True) -> str:
    return json.dumps(redact_values(document), indent=indent, allow_nan=allow_nan) + "\n"


def write_whole(path: Path, content: bytes) -> None:
    """Write `content` to `path` atomically. Text is written by the other functions, which redact it."""
    part = path.with_name(path.name + PART)
    # Whoever left a file of this name there may have made it a link to another one, or a pipe.
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_NONBLOCK
    descriptor = os.open(part, flags, 0o666)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        put_in_place(part, path)
    except OSError:
        # A full disk needs the room.
        with suppress(OSError):
            part.unlink()
        raise


def put_in_place(part: Path, path: Path) -> None:
    """Rename the finished file `part` to `path`, once all of its bytes are on disk."""
    with part.open("rb") as file:
        os.fsync(file.fileno())
    part.replace(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` survive a power failure, where the file system supports it."""
    descriptor = os.open(folder, os.O_RDONLY)
    with suppress(OSError):
        os.fsync(descriptor)
    os.close(descriptor)
