"""The store has one folder per run and is written so that a crash neither loses nor repeats finished work.

A folder holds `manifest.json` (written first), `journal.jsonl`, `lock` and, once the run has finished,
`records.jsonl` and `records.parquet`. Records come in blocks of one conversation or one batch of them; an
unfinished block does not count and is measured again as a whole.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from itertools import count
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from typing_extensions import override

from harness.config import ConfigError
from harness.store.integrity.lines import Chain, Line, manifest_link
from harness.store.integrity.manifests import MANIFEST as MANIFEST
from harness.store.integrity.manifests import encode_manifest
from harness.store.integrity.manifests import read_manifest as read_manifest
from harness.store.integrity.paths import read_file, refuse_link
from harness.store.integrity.shapes import Moment, read_entry, read_manifest_json
from harness.store.journal import JOURNAL, Journal, RunWriter, plain, read_journal
from harness.store.locations import children_of, run_folder, run_folders
from harness.store.parquet import COLUMNS, About, StoredExhibits, StoredRecords, encode_columns, read_about
from harness.store.records import Cell, Failure, GenerationRecord, Run, RunManifest
from harness.store.write_lock import LOCK, Lease, lock_or_refuse, open_to_write
from harness.system.files import PART, sync_folder, write_whole
from harness.system.naming import digest, now, slug
from harness.system.secrets import redact, redact_values

RECORDS = "records.jsonl"

_SAME = ("run_id", "cell", "arms", "rungs", "prompts", "replicate")
_SAME_TARGET = ("source", "revision", "dtype", "attention", "cache", "num_parameters")


class OpenRun(RunWriter):
    """A run that this process writes to disk; made by `ResultStore.open_run`.

    Every `write_` has reached the disk when it returns.
    """

    def __init__(self, folder: Path, manifest: RunManifest) -> None:
        """Take the lock, write or compare the manifest, and drop a torn last line of the journal.

        Raises:
            RunBusy: another process has the run open.
            CorruptJournal: a line other than the last is not what was written.
            ConfigError: the folder holds a different run or is a link, or no reader would accept `manifest`.
        """
        refuse_link(folder)
        try:
            manifest = read_manifest_json(json.dumps(redact_values(manifest.to_json())).encode())
        except ValueError as error:
            raise ConfigError(f"{folder}: its manifest could not be read again: {error}.") from error
        folder.mkdir(parents=True, exist_ok=True)
        self._lease, self._descriptor, self._failed = Lease(folder), -1, False
        try:
            settled, path = _settle(folder, manifest), folder / JOURNAL
            self._descriptor = open_to_write(path)
            # The journal is locked too, because somebody may delete the lock file of a run that is written.
            lock_or_refuse(self._descriptor, folder, is_known=False)
            journal, healed = read_journal(path, settled), ""
            if journal.torn:
                healed = f"{path}: {journal.torn}; dropped it; its prompt is measured again"
                os.truncate(self._descriptor, journal.num_bytes)
            super().__init__(folder, settled, journal, healed)
            sync_folder(folder)
            if not self.finished:
                self._write("open", Moment(at=now(), pid=os.getpid()))
        except BaseException:
            self.close()
            raise

    @override
    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
        self._lease.close()

    @override
    def finish(self) -> None:
        if self.finished:
            return
        moment = Moment(at=now(), num_records=len(self._journal.records()))
        line, _ = self._chain().encode("finished", moment)
        # The columns contain the last line of the journal; they are written first and valid once it is there.
        export_records(self.folder, self._journal, line)
        self._write("finished", moment)

    @override
    def _write(self, kind: str, entry: Any) -> None:
        if self._failed and kind != "failure":
            raise OSError(f"{self.folder / JOURNAL}: an earlier line could not be written")
        given = plain(entry)
        data = redact_values(given)
        line, link = self._chain().encode(kind, data)
        # Columns are exported from what is in memory, so that must hold no secret either.
        self._journal.add(kind, entry if data == given else read_entry(Line(kind, json.dumps(data).encode())))
        try:
            append_line(self._descriptor, self._journal.num_bytes, line)
        except BaseException:
            # What this process knows is now more than what is on disk, so only the reason may follow.
            self._failed, self._journal.finished = True, False
            raise
        self._journal.num_bytes, self._journal.link = self._journal.num_bytes + len(line), link

    def _chain(self) -> Chain:
        return Chain(self.manifest.run_id, self._journal.link)


def append_line(descriptor: int, place: int, line: bytes) -> None:
    """Write a line at the end of a journal, `place`, so that it is on disk; if that fails, it is not there.

    Without that, the next line would follow half of this one, and the journal could not be read again.
    """
    try:
        written = 0
        while written < len(line):
            written += os.pwrite(descriptor, line[written:], place + written)
        os.fsync(descriptor)
    except BaseException:
        with suppress(OSError):
            os.truncate(descriptor, place)
        raise


def _settle(folder: Path, manifest: RunManifest) -> RunManifest:
    """The manifest that counts: the one in `folder` if it describes the same run, else this one, now written.

    Raises:
        ConfigError: the folder holds a different run.
    """
    path = folder / MANIFEST
    if not os.path.lexists(path):
        # As it will be read, which is not the same where a text is no valid Unicode.
        facts = json.loads(encode_manifest(manifest.to_json()))
        write_whole(path, encode_manifest({**facts, "chain": manifest_link(facts)}))
    stored = read_manifest(path)
    ours, theirs = (json.loads(json.dumps(each.to_json())) for each in (manifest, stored))
    differing = [key for key in _SAME if ours[key] != theirs[key]]
    differing += [
        f"target.{key}" for key in _SAME_TARGET if ours["target"].get(key) != theirs["target"].get(key)
    ]
    if differing:
        raise ConfigError(
            f"{folder}: holds another run under the same id; these differ: {', '.join(differing)}."
            " Something outside the configuration changed (a task file, the weights). Measure beside it"
            " with `replicate=next`, or move the folder away."
        )
    return stored


class ResultStore:
    """All run folders below `root`."""

    def __init__(self, root: Path) -> None:
        """Do no work; `root` need not exist."""
        self.root = Path(root)

    def check_writable(self) -> None:
        """Raise ConfigError where no run could be written."""
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            with TemporaryFile(dir=self.root):
                pass
        except OSError as error:
            raise unwritable(self.root, error) from error

    def open_run(self, manifest: RunManifest) -> RunWriter:
        """Begin or resume the run of `manifest.run_id`; see `OpenRun` for what can be wrong."""
        return OpenRun(self.root / manifest.run_id, manifest)

    def load_runs(self) -> list[Run]:
        """All runs of the store, as the function `load_runs` reads them."""
        return load_runs(self.root)

    def is_finished(self, run_id: str) -> bool:
        """Whether this run was measured completely."""
        return is_finished(run_folder(self.root / run_id))

    def next_replicate(self, make_id: Callable[[int], str]) -> int:
        """The first replicate (0, 1, ...) whose run, named by `make_id`, is not finished."""
        return next(number for number in count() if not self.is_finished(make_id(number)))

    def write_failed_cell(
        self,
        failure: Failure,
        cell: Cell,
        *,
        config: dict[str, Any] | None = None,
        overrides: list[str] | None = None,
    ) -> Path:
        """A folder for a cell of a sweep that failed before its manifest could be built.

        It is never finished and has a name of its own, so the cell can be run once its fault is mended.
        A cell that failed later has a manifest: open that run and `write_failure`.
        """
        overrides = redact(overrides or [])
        names = [slug(name) for name in (cell.target, cell.task, cell.decoding)]
        unique = digest([asdict(cell), overrides])[:8]
        manifest = RunManifest(
            run_id=".".join([*names, f"failed-{unique}"]),
            cell=cell,
            arms={},
            rungs=[],
            config=redact(config or {}),
            overrides=overrides,
            target={},
            prompts={},
            provenance={},
            created=now(),
        )
        with self.open_run(manifest) as run:
            run.write_failure(failure)
            return run.folder


def export_records(folder: Path, journal: Journal, end: bytes = b"") -> None:
    """Write the exports of a run. end: the line that will end its journal, if it is not written yet."""
    records = journal.records()
    write_whole(folder / RECORDS, encode_lines(records))
    written = read_file(folder / JOURNAL)
    about = About.of(journal, len(written) + len(end), end or written.splitlines(keepends=True)[-1])
    write_whole(folder / COLUMNS, encode_columns(records, about))


def encode_lines(records: Sequence[GenerationRecord]) -> bytes:
    """The bytes of the export with a line for each record."""
    return "".join(json.dumps(one.to_json(), separators=(",", ":")) + "\n" for one in records).encode()


def unwritable(folder: Path | str, error: OSError) -> ConfigError:
    """The error for a folder below `results` that cannot be written."""
    return ConfigError(
        f"{folder}: cannot be written ({error.strerror}); choose another place with results=FOLDER"
    )


def load_run(folder: Path) -> Run:
    """Read one run folder; a run that is still being written gives its finished blocks.

    Raises:
        ConfigError: `folder` holds no run, or one of another version of the store.
        CorruptJournal: a file does not hold what was written.
    """
    folder = run_folder(folder)
    manifest, journal = read_folder(folder)
    return Run(
        folder=str(folder),
        manifest=manifest,
        records=journal.records(),
        nulls=journal.nulls(),
        exhibits=journal.exhibits(),
        probes=journal.probes,
        loads=journal.loads(),
        failures=journal.failures(),
        finished=journal.finished,
    )


def read_folder(folder: Path) -> tuple[RunManifest, Journal]:
    """The manifest and the journal of a run folder; raises the errors of `load_run`."""
    manifest = read_manifest(folder / MANIFEST)
    return manifest, read_journal(folder / JOURNAL, manifest)


def is_finished(folder: Path) -> bool:
    """Whether a folder holds a run that was measured completely; raises the errors of `load_run`."""
    return (folder / JOURNAL).exists() and read_folder(folder)[1].finished


def load_runs(root: Path) -> list[Run]:
    """Read all runs below `root` by name, packed ones too; an empty folder (an early crash) is skipped.

    Records stay in an export that is of its journal until they are asked for. Raises what `load_run` does;
    nothing is passed over because it cannot be read.
    """
    if not root.is_dir():
        raise ConfigError(f"{root}: no such folder. `python -m harness.bench` measures runs into it.")
    folders = run_folders(root).values()
    return [_load_columns(folder) or load_run(folder) for folder in folders if has_content(folder)]


def _load_columns(folder: Path) -> Run | None:
    """A run whose records stay in its export; None if it has no export that matches its journal."""
    if (about := read_about(folder)) is None:
        return None
    manifest = read_manifest(folder / MANIFEST)
    return Run(
        folder=str(folder),
        manifest=manifest,
        records=StoredRecords(folder, manifest, about),
        nulls=about.nulls,
        exhibits=StoredExhibits(folder, manifest, about),
        probes=about.probes,
        loads=about.loads,
        failures=about.failures,
        finished=True,
    )


def has_content(folder: Path) -> bool:
    """Whether anything was written into a run folder but its lock."""
    return any(child.name != LOCK and not child.name.endswith(PART) for child in children_of(folder))
