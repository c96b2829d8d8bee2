"""Places that runs are read from: a folder, any URL that fsspec reads, and the packs in them."""

from __future__ import annotations

import zipfile
from io import BytesIO
from pathlib import Path
from typing import Any, cast

from harness.config import ConfigError

RUNS = "runs"
"""The folder of the runs, below the results."""
PACKS = "packed-", ".zip"
"""Prefix and suffix of the name of a pack, which is an archive of finished run folders."""


def locate(given: str | Path) -> Path:
    """A local path, or for a URL (`s3://...`, `https://...`) an object with the reading methods of a path.

    Raises:
        ConfigError: no installed package reads such URLs; the message says which one does.
    """
    if "://" not in str(given):
        return Path(given)
    from upath import UPath

    try:
        place = UPath(given)
        # Making the file system now reports a missing package now.
        assert place.fs
    except (ImportError, ValueError) as error:
        raise ConfigError(
            f"{given}: cannot be read: {error}. fsspec needs a package for each kind of URL: s3://"
            " needs s3fs, gs:// gcsfs, http:// and https:// aiohttp; type pip install PACKAGE."
        ) from error
    return cast(Path, place)


def is_local(place: Any) -> bool:
    """Whether it is a file or folder of this machine, as opposed to one at a URL or in a pack."""
    return isinstance(place, Path)


def size_of(file: Path) -> int:
    """The size in bytes of a file at any place."""
    if isinstance(file, zipfile.Path):
        return file.root.getinfo(file.at).file_size
    return int(file.stat().st_size)


def run_folders(root: Path) -> dict[str, Path]:
    """The run folders below `root` by name, sorted, including those in packs.

    If packing or unpacking was interrupted, a run is both in a pack and in a folder; the folder counts.
    """
    found: dict[str, Path] = {}
    children = list(root.iterdir())
    for pack in sorted((child for child in children if is_pack(child.name)), key=lambda child: child.name):
        found |= in_pack(pack)
    found |= {child.name: child for child in children if not child.name.startswith(".") and child.is_dir()}
    return dict(sorted(found.items()))


def run_folder(folder: Path) -> Path:
    """The folder of a run, or its place in a pack; `folder` itself if the run does not exist."""
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
    """The run folders in a pack, by name.

    Raises:
        ConfigError: it is not an archive, or not a complete one.
    """
    try:
        archive = _archive(pack)
    except (zipfile.BadZipFile, OSError) as error:
        raise ConfigError(
            f"{pack}: is not a readable pack of runs ({error}). Restore it, or move it away."
        ) from error
    return {child.name: cast(Path, child) for child in zipfile.Path(archive).iterdir() if child.is_dir()}


def _archive(pack: Path) -> zipfile.ZipFile:
    if is_local(pack):
        return zipfile.ZipFile(pack)
    try:
        archive = zipfile.ZipFile(pack.open("rb"))
    except ValueError:
        # This web server only sends whole files.
        archive = zipfile.ZipFile(BytesIO(pack.read_bytes()))
    archive.filename = str(pack)
    return archive
