"""Packs: put many finished run folders into one archive and restore them byte for byte.

A pack is a ZIP file of whole folders, so any tool can open it, and reports read the runs in it like folders.
After a crash at any point, every run is complete in its folder, in a pack, or in both.
"""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

from harness.config import ConfigError
from harness.store.integrity.paths import read_file, refuse_link
from harness.store.locations import PACKS, in_pack, is_pack
from harness.store.parquet import COLUMNS
from harness.store.run_store import is_finished
from harness.store.write_lock import LOCK
from harness.system.files import PART, put_in_place, sync_folder, write_whole
from harness.system.naming import digest

NUM_TOGETHER = 250
"""The number of runs in a full pack."""
_GONE = ".gone-"
"""The prefix of a folder that is being deleted or restored."""
_LOCK = ".packing"

Note = Callable[[str], None]
"""A function that shows a line to the user."""


def compact(root: Path, note: Note, together: int = NUM_TOGETHER) -> list[Path]:
    """Move the finished runs below `root` into packs of `together` runs, and return the new packs.

    Unfinished runs stay where they are. The lock file of a run, which names its writer, is left out.

    Raises:
        ConfigError: a run is in a pack already, with other content; or a folder holds no run.
    """
    with _locked(root):
        packed = {name: place for pack in _packs(root) for name, place in in_pack(pack).items()}
        finished = [folder for folder in _folders(root, note) if is_finished(folder)]
        for folder in [folder for folder in finished if folder.name in packed]:
            # An earlier call was interrupted before it could delete the folder.
            _delete(folder, packed[folder.name])
            finished.remove(folder)
        made = []
        for start in range(0, len(finished), together):
            chosen = finished[start : start + together]
            made.append(_write(root, chosen))
            places = in_pack(made[-1])
            for folder in chosen:
                _delete(folder, places[folder.name])
            note(f"packed {len(chosen)} runs into {made[-1]}")
        return made


def expand(root: Path, note: Note) -> int:
    """Restore the runs of all packs below `root`, delete the packs, and return the number of runs.

    Raises:
        ConfigError: a folder of that name exists already, with other content.
    """
    number = 0
    with _locked(root):
        for pack in _packs(root):
            for name, place in in_pack(pack).items():
                _restore(root / name, place)
                number += 1
            sync_folder(root)
            pack.unlink()
            note(f"unpacked {pack}")
    return number


@contextmanager
def _locked(root: Path) -> Iterator[None]:
    """Keep other packers out, and remove what an earlier one left half done."""
    if not root.is_dir():
        raise ConfigError(f"{root}: no such folder. `python -m harness.bench` measures runs into it.")
    refuse_link(root / _LOCK)
    with FileLock(root / _LOCK):
        _sweep(root)
        yield


def _packs(root: Path) -> list[Path]:
    return sorted(path for path in root.iterdir() if is_pack(path.name))


def _folders(root: Path, note: Note) -> list[Path]:
    """The run folders of a store; those that are links stay where they are."""
    folders = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    for folder in folders:
        if folder.is_symlink():
            note(f"{folder} is a symbolic link and stays as it is")
    return [folder for folder in folders if not folder.is_symlink()]


def _files(folder: Path) -> Iterator[Path]:
    """All files of a run folder, sorted by name, except its lock and what was never written to its end."""
    for path in sorted(folder.rglob("*")):
        if any(part.endswith(PART) for part in path.relative_to(folder).parts):
            continue
        if path.is_symlink() or not (path.is_dir() or path.is_file()):
            raise ConfigError(
                f"{path}: is neither a file nor a folder, so it cannot be packed; move it away."
            )
        if path.is_file() and path != folder / LOCK:
            yield path


def _write(root: Path, folders: Sequence[Path]) -> Path:
    path = root / digest([folder.name for folder in folders])[:12].join(PACKS)
    part = path.with_name(path.name + PART)
    with zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED, strict_timestamps=False) as archive:
        for folder in folders:
            archive.mkdir(folder.name)
            for file in _files(folder):
                # Parquet files are compressed already.
                how = zipfile.ZIP_STORED if file.name == COLUMNS else zipfile.ZIP_DEFLATED
                archive.write(file, file.relative_to(root), how)
    put_in_place(part, path)
    return path


def _delete(folder: Path, place: Path) -> None:
    """Delete a folder after checking that every byte of it is at `place` in a pack."""
    if differing := _differing(folder, place):
        raise _conflict(folder / differing, place)
    gone = folder.with_name(_GONE + folder.name)
    # Renamed first, so that a crash leaves no half-deleted folder under the name of a run.
    folder.rename(gone)
    shutil.rmtree(gone)


def _restore(folder: Path, place: Path) -> None:
    refuse_link(folder)
    if folder.is_dir():
        if differing := _differing(folder, place):
            raise _conflict(folder / differing, place)
        return
    # Until it is complete, the folder has a name that the next call cleans up.
    part = folder.with_name(_GONE + folder.name)
    part.mkdir()
    for name, packed in _packed_files(place).items():
        (part / name).parent.mkdir(parents=True, exist_ok=True)
        write_whole(part / name, read_file(packed))
    part.rename(folder)


def _conflict(path: Path, place: Path) -> ConfigError:
    return ConfigError(
        f"{path}: differs from {place}. Move one of the two away, then type the command again."
    )


def _differing(folder: Path, place: Path) -> str:
    """The first file in which a folder and its copy in a pack differ, "" if they are equal."""
    ours = {str(path.relative_to(folder)): path for path in _files(folder)}
    theirs = _packed_files(place)
    for name in sorted({*ours, *theirs}):
        if name not in ours or name not in theirs or read_file(ours[name]) != read_file(theirs[name]):
            return name
    return ""


def _packed_files(place: Path, prefix: str = "") -> dict[str, Path]:
    found: dict[str, Path] = {}
    for child in place.iterdir():
        name = f"{prefix}{child.name}"
        found |= _packed_files(child, f"{name}/") if child.is_dir() else {name: child}
    return found


def _sweep(root: Path) -> None:
    """Remove what a crash left half deleted or half written; complete copies are elsewhere."""
    for path in root.iterdir():
        if path.name.startswith(_GONE) and path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name.startswith(_GONE) or (path.name.startswith(PACKS[0]) and path.name.endswith(PART)):
            path.unlink()
