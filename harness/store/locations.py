"""Roots: where runs lie to be read: a folder, a URL of any kind that fsspec reads, and the packs in them."""

from __future__ import annotations

import zipfile
from io import BytesIO
from pathlib import Path
from typing import Any, cast

from harness.config import ConfigError

RUNS = "runs"
"""Folder of the runs, below the results."""
PACKS = "packed-", ".zip"
"""Beginning and ending of a pack's name: an archive of many finished run folders."""


def locate(given: str | Path) -> Path:
    """A folder, or the place of a URL (`s3://...`, `https://...`), which has a folder's reading methods.

    Raises:
        ConfigError: nothing here reads such URLs; what to install.
    """
    if "://" not in str(given):
        return Path(given)
    from upath import UPath

    try:
        place = UPath(given)
        # The file system is made at once, so that a missing package is reported at once.
        assert place.fs
    except (ImportError, ValueError) as error:
        raise ConfigError(
            f"{given}: cannot be read here: {error}. fsspec reads such URLs with a package of its own: s3://"
            " needs s3fs, gs:// gcsfs, http:// and https:// aiohttp; type pip install PACKAGE."
        ) from error
    return cast(Path, place)


def is_local(place: Any) -> bool:
    """Whether it is a file or folder of this machine, not one of a URL or in a pack."""
    return isinstance(place, Path)


def size_of(file: Path) -> int:
    """Bytes of a file, wherever it lies."""
    if isinstance(file, zipfile.Path):
        return file.root.getinfo(file.at).file_size
    return int(file.stat().st_size)


def run_folders(root: Path) -> dict[str, Path]:
    """The run folders below `root` by their names, sorted; those in packs too.

    One that lies beside its pack (packing or unpacking was broken off) is taken from its folder.
    """
    found: dict[str, Path] = {}
    children = list(root.iterdir())
    for pack in sorted((child for child in children if is_pack(child.name)), key=lambda child: child.name):
        found |= in_pack(pack)
    found |= {child.name: child for child in children if not child.name.startswith(".") and child.is_dir()}
    return dict(sorted(found.items()))


def run_folder(folder: Path) -> Path:
    """A run's folder; where it was packed, its place in the pack; where it is neither, the folder."""
    if not is_local(folder) or folder.is_dir() or not folder.parent.is_dir():
        return folder
    for pack in sorted(folder.parent.glob("*".join(PACKS))):
        if found := in_pack(pack).get(folder.name):
            return found
    return folder


def is_pack(name: str) -> bool:
    """Whether a file of this name is a pack."""
    return name.startswith(PACKS[0]) and name.endswith(PACKS[1])


def in_pack(pack: Path) -> dict[str, Path]:
    """The run folders in a pack by their names.

    Raises:
        ConfigError: it is no archive, or not a whole one.
    """
    try:
        archive = _archive(pack)
    except (zipfile.BadZipFile, OSError) as error:
        raise ConfigError(f"{pack}: is no pack of runs ({error}). Restore it, or move it away.") from error
    return {child.name: cast(Path, child) for child in zipfile.Path(archive).iterdir() if child.is_dir()}


def _archive(pack: Path) -> zipfile.ZipFile:
    if is_local(pack):
        return zipfile.ZipFile(pack)
    try:
        archive = zipfile.ZipFile(pack.open("rb"))
    except ValueError:
        # A web server that gives whole files only.
        archive = zipfile.ZipFile(BytesIO(pack.read_bytes()))
    archive.filename = str(pack)
    return archive
