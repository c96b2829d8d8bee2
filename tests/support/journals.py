"""Journals of stored runs, edited as somebody would who knows their format."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from harness.store.integrity.lines import Chain, manifest_link
from harness.store.journal import JOURNAL, read_journal
from harness.store.parquet import COLUMNS
from harness.store.run_store import MANIFEST, read_manifest

Entries = list[tuple[str, Any]]
"""Kind and data of each line, as JSON types."""


def lines(entries: Iterable[tuple[str, Any]], run: str, link: str = "") -> bytes:
    """Lines that follow one of this link; without a link, as earlier versions wrote them."""
    chain, made = Chain(run, link), b""
    for kind, data in entries:
        line, chain.link = chain.encode(kind, data)
        made += line
    return made


def more_lines(folder: Path, *entries: tuple[str, Any]) -> bytes:
    """Lines that continue the journal of a run."""
    manifest = read_manifest(folder / MANIFEST)
    return lines(entries, manifest.run_id, read_journal(folder / JOURNAL, manifest).link)


def entries_of(folder: Path) -> Entries:
    """What the journal of a run says, unchecked."""
    written = [json.loads(line) for line in (folder / JOURNAL).read_bytes().splitlines()]
    return [(one["kind"], one["data"]) for one in written]


def forge(
    folder: Path,
    edit: Callable[[Entries], Any] = lambda _: None,
    of_manifest: Callable[[dict[str, Any]], Any] = lambda _: None,
    chained: bool = True,
) -> None:
    """Edit a run in place and compute its checksums and links again; without its export.

    chained: whether it is one of this version, or as earlier ones wrote it.
    """
    entries, manifest = entries_of(folder), json.loads((folder / MANIFEST).read_text())
    edit(entries)
    of_manifest(manifest)
    if chained:
        manifest["chain"] = manifest_link(manifest)
    else:
        del manifest["chain"]
        manifest["schema_version"] = 2
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1))
    run = str(manifest.get("run_id"))
    (folder / JOURNAL).write_bytes(lines(entries, run, manifest.get("chain", "")))
    (folder / COLUMNS).unlink(missing_ok=True)
