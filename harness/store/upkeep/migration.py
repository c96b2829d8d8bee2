"""Migration: bring stores of older versions of the harness to the form of this one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness.config import ConfigError
from harness.store.integrity.manifests import MANIFEST, encode_manifest
from harness.store.integrity.paths import MAX_SMALL_BYTES, CorruptJournal, read_file, refuse_link
from harness.store.integrity.shapes import read_manifest_json
from harness.store.parquet import read_about
from harness.store.records import SCHEMA_VERSION
from harness.store.run_store import export_records, read_folder
from harness.system.files import write_whole
from harness.system.secrets import redact_values

STEPS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {
    # Version 1 had no exhibits, which a manifest does not mention.
    1: lambda manifest: manifest,
    # Version 2 had no chain, and a run that was written without one never gets one. Nor did it record the
    # loads of blocks, which a manifest does not mention.
    2: lambda manifest: manifest,
}
"""For each version, a function that converts its manifest to the next version, except for the number."""


def migrate(root: Path, note: Callable[[str], None]) -> int:
    """Bring every run folder below `root` to this version, and return the number of those that changed.

    Manifests are converted, and finished runs get the exports of their journals, which stay untouched.
    Folders of this version stay as they are, so the same command completes a migration that was interrupted.

    Raises:
        ConfigError: there is no such folder, or a run's version cannot be converted.
        CorruptJournal: a journal does not hold what was written.
    """
    if not root.is_dir():
        raise ConfigError(f"{root}: no such folder. `python -m harness.bench` measures runs into it.")
    folders = sorted(path.parent for path in root.glob(f"*/{MANIFEST}"))
    num_changed = 0
    for folder in folders:
        if _migrate(folder):
            num_changed += 1
            note(f"migrated {folder}")
    return num_changed


def _migrate(folder: Path) -> bool:
    manifest = folder / MANIFEST
    refuse_link(folder)
    text = read_file(manifest, MAX_SMALL_BYTES)
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CorruptJournal(f"{manifest}: is not JSON ({error}). Restore it, or move it away.") from error
    version = data.get("schema_version") if isinstance(data, dict) else None
    if not isinstance(version, int):
        raise CorruptJournal(f"{manifest}: has no schema_version. Restore it, or move the folder away.")
    is_old = bool(version != SCHEMA_VERSION)
    while version in STEPS and version != SCHEMA_VERSION:
        data = {**STEPS[version](data), "schema_version": version + 1}
        version += 1
    if is_old and version == SCHEMA_VERSION:
        data = redact_values(data)
        try:
            written = encode_manifest(data)
            read_manifest_json(written)
        except ValueError as error:
            raise CorruptJournal(f"{manifest}: {error}. Restore it, or move the folder away.") from error
        write_whole(manifest, written)
    _, journal = read_folder(folder)
    if not journal.finished or read_about(folder) is not None:
        return is_old
    export_records(folder, journal)
    return True
