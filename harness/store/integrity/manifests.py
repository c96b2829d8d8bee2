"""The file of a run's manifest: its bytes, its version, and whether it is what was written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from harness.config import ConfigError
from harness.store.integrity.lines import manifest_link
from harness.store.integrity.paths import MAX_SMALL_BYTES, CorruptJournal, read_file
from harness.store.integrity.shapes import read_manifest_json
from harness.store.records import READABLE_VERSIONS, SCHEMA_VERSION, RunManifest

MANIFEST = "manifest.json"


def encode_manifest(data: dict[str, Any]) -> bytes:
    """The bytes of a manifest's file."""
    text = json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False)
    return f"{text}\n".encode("utf-8", "replace")


def read_manifest(path: Path) -> RunManifest:
    """Read the manifest of a run; raises the errors of `load_run`."""
    try:
        text = read_file(path, MAX_SMALL_BYTES)
    except FileNotFoundError:
        raise ConfigError(
            f"{path.parent}: has no {MANIFEST}, so it is not a run folder. Move it away."
        ) from None
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CorruptJournal(
            f"{path}: is not JSON ({error}). Restore it, or move the folder away."
        ) from error
    version = data.get("schema_version") if isinstance(data, dict) else None
    if version not in READABLE_VERSIONS or isinstance(version, bool | float):
        raise ConfigError(
            f"{path}: has schema version {version}, this harness reads"
            f" {' and '.join(map(str, READABLE_VERSIONS))}. {_remedy(path, version)}"
        )
    try:
        manifest = read_manifest_json(text)
        if manifest.chain and manifest.chain != manifest_link(data):
            raise ValueError("it was changed after it was written")
    except ValueError as error:
        raise CorruptJournal(f"{path}: {error}. Restore it, or move the folder away.") from error
    return manifest


def _remedy(path: Path, version: object) -> str:
    if not isinstance(version, int) or version > SCHEMA_VERSION:
        return "Read it with the harness that wrote it, or measure again."
    return f"Type python -m harness.report migrate --results {path.parent.parent.parent}"
