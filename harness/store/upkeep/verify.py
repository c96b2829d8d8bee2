"""Whether a stored run is what was written: its manifest, its journal, and the exports made from it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

from harness.config import ConfigError
from harness.store.integrity.paths import CorruptJournal, read_file
from harness.store.journal import Journal
from harness.store.locations import run_folders
from harness.store.parquet import COLUMNS, read_about, read_rows
from harness.store.records import BASELINE
from harness.store.run_store import RECORDS, encode_lines, has_content, read_folder

State = Literal["verified", "not verifiable", "damaged"]


class Finding(NamedTuple):
    """What is known of one run."""

    run: str
    state: State
    """`verified`: the chain is whole from the manifest to the last line, and the exports hold the same
    records. `not verifiable`: nothing contradicts itself, but the run is from before there were chains.
    `damaged`: something is not what was written."""
    reason: str
    """What is damaged, or what limits the finding; else ""."""


def verify(root: Path) -> Iterator[Finding]:
    """Check every run below `root`, in the order of their names; those in packs too.

    Raises:
        ConfigError: there is no such folder, or a pack cannot be read.
    """
    if not root.is_dir():
        raise ConfigError(f"{root}: no such folder. `python -m harness.bench` measures runs into it.")
    for name, folder in run_folders(root).items():
        if not has_content(folder):
            continue
        try:
            yield _verified(name, folder)
        except (ConfigError, OSError) as error:
            yield Finding(name, "damaged", str(error))


def _verified(name: str, folder: Path) -> Finding:
    manifest, journal = read_folder(folder)
    _check_identical(folder, journal)
    if journal.finished:
        _check_exports(folder, journal)
    if not manifest.chain:
        return Finding(name, "not verifiable", "written before there were chains; nothing contradicts itself")
    if journal.finished:
        return Finding(name, "verified", "")
    torn = f"; {journal.torn}" if journal.torn else ""
    return Finding(name, "verified", f"not finished, so that lines may be missing from its end{torn}")


def _check_identical(folder: Path, journal: Journal) -> None:
    """Raise CorruptJournal if a record that is called identical has other tokens than vanilla's."""
    for block in journal.blocks.values():
        vanilla = {
            (one.conversation, one.turn, one.sample): one.output_ids
            for one in block.records
            if one.arm == BASELINE and one.repeat == 0
        }
        for one in block.records:
            expected = vanilla.get((one.conversation, one.turn, one.sample), one.output_ids)
            if one.verdict and one.verdict.kind == "identical" and one.output_ids != expected:
                raise CorruptJournal(
                    f"{folder}: {one.arm} is called identical with {BASELINE} in {one.conversation}, turn"
                    f" {one.turn}, sample {one.sample}, repeat {one.repeat}, and has other tokens."
                )


def _check_exports(folder: Path, journal: Journal) -> None:
    """Raise CorruptJournal if an export of a finished run does not hold the records of its journal."""
    records = journal.records()
    remedy = "Delete it: the journal beside it holds the records."
    if (folder / RECORDS).exists() and read_file(folder / RECORDS) != encode_lines(records):
        raise CorruptJournal(f"{folder / RECORDS}: does not hold the records of its journal. {remedy}")
    if not (folder / COLUMNS).exists():
        return
    about = read_about(folder)
    if about is None:
        raise CorruptJournal(f"{folder / COLUMNS}: is not an export of its journal. {remedy}")
    same = about.nulls == journal.nulls() and about.probes == journal.probes
    same = same and about.failures == journal.failures() and about.loads == journal.loads()
    same = same and about.num_exhibits == len(journal.exhibits())
    rows = read_rows(folder)
    names = list(rows[0]) if rows else []
    expected = [{name: value for name, value in one.to_json().items() if name in names} for one in records]
    # As texts, because a gap that is no number equals nothing.
    if not same or list(map(_text, rows)) != list(map(_text, expected)):
        raise CorruptJournal(f"{folder / COLUMNS}: does not hold the records of its journal. {remedy}")


def _text(row: dict[str, Any]) -> str:
    return json.dumps(row, sort_keys=True)
