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
    part.write_bytes(content)
    put_in_place(part, path)


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
