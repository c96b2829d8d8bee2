"""Atomic file writes: a crash leaves the whole file or none."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

PART = ".part"
"""Suffix of a file that is still being written."""


def write_whole(path: Path, content: bytes) -> None:
    """Write `content` to `path` atomically."""
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
