"""Places that runs are read from: a folder, any URL that fsspec reads, and the packs in them."""

from __future__ import annotations

import zipfile
from io import BytesIO
from pathlib import Path
from typing import Any, cast

from harness.config import ConfigError
from harness.store.integrity.paths import (
    check_archive,
    fault_of_name,
    is_local,
    open_file,
    read_file,
    refuse_link,
)

RUNS = "runs"
"""The folder of the runs, below the results."""
PACKS = "packed-", ".zip"
"""Prefix and suffix of the name of a pack, which is an archive of finished run folders."""


MAX_PACK_BYTES = 1 << 40


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


def run_folders(root: Path) -> dict[str, Path]:
    """The run folders below `root` by name, sorted, including those in packs.

    If packing or unpacking was interrupted, a run is both in a pack and in a folder; the folder counts.

    Raises:
        ConfigError: a pack is not readable, two packs disagree about a run, or a run is a link.
    """
    found: dict[str, Path] = {}
    children = children_of(root)
    for pack in sorted((child for child in children if is_pack(child.name)), key=lambda child: child.name):
        for name, place in in_pack(pack).items():
            if name in found and _members(found[name]) != _members(place):
                raise ConfigError(f"{place}: differs from {found[name]}. Move one of the two packs away.")
            found[name] = place
    for child in children:
        if not child.name.startswith(".") and child.is_dir():
            refuse_link(child)
            found[child.name] = child
    return dict(sorted(found.items()))


def children_of(root: Path) -> list[Path]:
    """What lies directly in a folder at any place.

    Raises:
        ConfigError: the place cannot be listed, or it lists what does not lie in it.
    """
    try:
        children = list(root.iterdir())
    except OSError:
        raise
    except Exception as error:  # each file system behind a URL raises classes of its own
        raise ConfigError(f"{root}: cannot be listed ({type(error).__name__}: {error}).") from error
    for child in children:
        if fault := fault_of_name(child.name):
            raise ConfigError(f"{root}: lists the name {child.name!r}, which {fault}. Nothing of it is read.")
        if not is_local(root) and str(child.parent).rstrip("/") != str(root).rstrip("/"):
            raise ConfigError(f"{root}: lists {child}, which does not lie in it. Nothing of it is read.")
    return children


def run_folder(folder: Path) -> Path:
    """The folder of a run, or its place in a pack; `folder` itself if the run does not exist."""
    if not is_local(folder) or folder.is_dir() or not folder.parent.is_dir():
        return folder
    for pack in sorted(folder.parent.glob("*".join(PACKS))):
        if found := in_pack(pack).get(folder.name):
            return found
    return folder


def _members(place: Any) -> dict[str, tuple[int, int]]:
    """Checksum and size of each file below a place in a pack."""
    return {
        member.filename: (member.CRC, member.file_size)
        for member in place.root.infolist()
        if member.filename.startswith(place.at) and not member.is_dir()
    }


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
        check_archive(archive)
        runs = [child for child in zipfile.Path(archive).iterdir() if child.is_dir()]
    except Exception as error:  # of zipfile, which raises many classes for damaged bytes, or of a URL's place
        raise ConfigError(
            f"{pack}: is not a readable pack of runs ({error}). Restore it, or move it away."
        ) from error
    if hidden := next((child.name for child in runs if child.name.startswith(".")), ""):
        raise ConfigError(f"{pack}: holds the folder {hidden}, which is no run. Move the pack away.")
    return {child.name: cast(Path, child) for child in runs}


def _archive(pack: Path) -> zipfile.ZipFile:
    if is_local(pack):
        # Opened by its name again, because an archive is read for as long as its runs are.
        open_file(pack, MAX_PACK_BYTES).close()
        return zipfile.ZipFile(pack)
    try:
        archive = zipfile.ZipFile(pack.open("rb"))
    except ValueError:
        # This web server only sends whole files.
        archive = zipfile.ZipFile(BytesIO(read_file(pack)))
    archive.filename = str(pack)
    return archive
