"""Paths inside a store, an archive or behind a URL: every file of a store is opened through this module.

Whoever made the store chose them, so no link is followed, nothing but a plain file is opened, no name leaves
its folder, and every size has a limit.
"""

from __future__ import annotations

import errno
import os
import stat
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

from harness.config import ConfigError

MAX_FILE_BYTES = 8 << 30
"""More than the largest journal: a million generations take about 2 GB."""
MAX_SMALL_BYTES = 64 << 20
"""For files that are read as one JSON value."""
_MAX_NAME_BYTES = 255
_MAX_DEPTH, _MAX_MEMBERS, _MAX_TOTAL_BYTES = 8, 1_000_000, 256 << 30
_MAX_RATIO, _FREE_BYTES = 200, 1 << 20
"""A file of an archive that is larger than the second number may not have shrunk by more than the first:
journals shrink by 5 to 20, and what shrinks by a thousand is zeros that were put there to fill a memory."""
_ENCRYPTED = 1
# zipfile raises the last two for a version or a compression it does not know, and for a wrong password.
_ZIP_ERRORS = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError)


class CorruptJournal(ConfigError):
    """A file of the store does not hold what was written."""


def is_local(place: Any) -> bool:
    """Whether it is a file or folder of this machine, as opposed to one at a URL or in a pack."""
    return isinstance(place, Path)


def size_of(file: Path) -> int:
    """The size in bytes of a file at any place."""
    if isinstance(file, zipfile.Path):
        return file.root.getinfo(file.at).file_size
    return int(file.stat().st_size)


def fault_of_name(name: str) -> str:
    """Why a file or folder of a store cannot have this name, "" if it can."""
    if name in ("", ".", ".."):
        return "is no name of a file"
    if any(character in "/\\" or ord(character) < 32 or ord(character) == 127 for character in name):
        return "holds a separator of folders or a control character"
    too_long = len(name.encode("utf-8", "surrogatepass")) > _MAX_NAME_BYTES
    return f"is longer than {_MAX_NAME_BYTES} bytes" if too_long else ""


def refuse_link(path: Path) -> None:
    """Raise ConfigError if `path`, a place inside a store, is a symbolic link."""
    if is_local(path) and path.is_symlink():
        raise ConfigError(
            f"{path}: is a symbolic link, and none is followed inside a store. Put what it points to in its"
            " place, or name the store that holds it with --results."
        )


def open_file(path: Path, limit: int = MAX_FILE_BYTES) -> BinaryIO:
    """Open a file of a store for reading; it must be a plain file of at most `limit` bytes.

    Raises:
        FileNotFoundError: there is none.
        ConfigError: it is a link, a folder, a pipe or a device, or is larger.
        CorruptJournal: it lies in an archive and cannot be read.
    """
    if is_local(path):
        return os.fdopen(_descriptor(path, limit), "rb")
    try:
        _check_size(path, size_of(path), limit)
        opened: Any = path.open("rb")
    except (FileNotFoundError, ConfigError):
        raise
    except KeyError:
        raise FileNotFoundError(str(path)) from None
    except Exception as error:  # each file system raises classes of its own
        raise _unreadable(path, error) from error
    return opened  # type: ignore[no-any-return]


def read_file(path: Path, limit: int = MAX_FILE_BYTES) -> bytes:
    """The content of a file of a store; raises the errors of `open_file`."""
    file = open_file(path, limit)
    try:
        with file:
            content = file.read(limit + 1)
    except OSError as error:
        if is_local(path):
            raise
        raise _unreadable(path, error) from error
    except Exception as error:
        raise _unreadable(path, error) from error
    _check_size(path, len(content), limit)
    return content


def _descriptor(path: Path, limit: int) -> int:
    try:
        # A pipe would block for ever without O_NONBLOCK, which changes nothing for a file.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno == errno.ELOOP:
            refuse_link(path)
        if error.errno == errno.ENXIO:
            raise ConfigError(f"{path}: is no plain file; move it away.") from error
        raise
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise ConfigError(f"{path}: is no plain file; move it away.")
        _check_size(path, found.st_size, limit)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _check_size(path: Path, size: int, limit: int) -> None:
    if size > limit:
        raise ConfigError(f"{path}: has {size} bytes, and {limit} is the most that is read. Move it away.")


def _unreadable(path: Path, error: Exception) -> ConfigError:
    text = f"{path}: cannot be read ({type(error).__name__}: {error})."
    if isinstance(path, zipfile.Path) or isinstance(error, _ZIP_ERRORS):
        return CorruptJournal(f"{text} Restore the archive, or move it away.")
    return ConfigError(f"{text} Try again later, or copy the store here and name the copy.")


def check_archive(archive: zipfile.ZipFile) -> None:
    """Raise ValueError, saying why, if a member of the archive may not be unpacked or read.

    Refused are names that leave the folder or occur twice, links and devices, encrypted members, and sizes
    that are beyond what a pack of runs has.
    """
    members = archive.infolist()
    if len(members) > _MAX_MEMBERS:
        raise ValueError(f"it has {len(members)} members, and {_MAX_MEMBERS} is the most")
    files: set[tuple[str, ...]] = set()
    folders: set[tuple[str, ...]] = set()
    for member in members:
        parts = _parts(member)
        if parts in files or (parts in folders and not member.is_dir()):
            raise ValueError(f"the name {member.filename!r} occurs twice")
        (folders if member.is_dir() else files).add(parts)
        folders |= {parts[:depth] for depth in range(1, len(parts))}
        _check_member(member)
    if both := files & folders:
        raise ValueError(f"{'/'.join(min(both))!r} is both a file and a folder")
    _check_total(members)


def _parts(member: zipfile.ZipInfo) -> tuple[str, ...]:
    # zipfile cuts a name at a zero byte.
    name = member.orig_filename if "\0" in member.orig_filename else member.filename
    parts = tuple(name.removesuffix("/").split("/"))
    if len(parts) > _MAX_DEPTH:
        raise ValueError(f"the name {name!r} is more than {_MAX_DEPTH} folders deep")
    for part in parts:
        if fault := fault_of_name(part):
            raise ValueError(f"in the name {name!r}, {part!r} {fault}")
    return parts


def _check_member(member: zipfile.ZipInfo) -> None:
    kind = stat.S_IFMT(member.external_attr >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise ValueError(f"{member.filename!r} is a link or a device")
    if member.flag_bits & _ENCRYPTED:
        raise ValueError(f"{member.filename!r} is encrypted")
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"{member.filename!r} is compressed in a way that no pack uses")
    is_bomb = member.file_size > max(_FREE_BYTES, _MAX_RATIO * member.compress_size)
    if is_bomb or member.file_size > MAX_FILE_BYTES:
        raise ValueError(f"{member.filename!r} says it unpacks to {member.file_size} bytes")


def _check_total(members: Iterable[zipfile.ZipInfo]) -> None:
    total = sum(member.file_size for member in members)
    if total > _MAX_TOTAL_BYTES:
        raise ValueError(f"it says it unpacks to {total} bytes, and {_MAX_TOTAL_BYTES} is the most")
    end = 0
    for member in sorted(members, key=lambda one: one.header_offset):
        # Members that share their bytes unpack to far more than the archive holds.
        if member.header_offset < end:
            raise ValueError(f"{member.filename!r} overlaps the member before it")
        end = member.header_offset + member.compress_size
