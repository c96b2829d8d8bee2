"""The store has one folder per run and is written so that a crash neither loses nor repeats finished work.

A folder holds `manifest.json` (written first), `journal.jsonl`, `lock` and, once the run has finished,
`records.jsonl` and `records.parquet`. Records come in blocks of one conversation or one batch of them; an
unfinished block does not count and is measured again as a whole.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict
from itertools import count
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from typing_extensions import override

from harness.config import ConfigError
from harness.store.journal import JOURNAL, CorruptJournal, Journal, RunWriter, encode, read_journal
from harness.store.locations import run_folder, run_folders
from harness.store.parquet import COLUMNS, About, StoredExhibits, StoredRecords, encode_columns, read_about
from harness.store.records import (
    READABLE_VERSIONS,
    SCHEMA_VERSION,
    Cell,
    Failure,
    Run,
    RunManifest,
)
from harness.store.write_lock import LOCK, Lease
from harness.system.files import PART, sync_folder, write_whole
from harness.system.naming import digest, now, redact, slug

MANIFEST, RECORDS = "manifest.json", "records.jsonl"

_SAME = ("run_id", "cell", "arms", "rungs", "prompts", "replicate", "schema_version")
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
            ConfigError: the folder holds a different run.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self._lease = Lease(folder)
        try:
            settled, path = _settle(folder, manifest), folder / JOURNAL
            journal, healed = read_journal(path), ""
            if journal.torn:
                healed = f"{path}: {journal.torn}; dropped it; its prompt is measured again"
                os.truncate(path, journal.num_bytes)
            super().__init__(folder, settled, journal, healed)
            self._file = path.open("ab")
            sync_folder(folder)
            if not self.finished:
                self._write("open", {"at": now(), "pid": os.getpid()})
        except BaseException:
            self._lease.close()
            raise

    @override
    def close(self) -> None:
        if not self._file.closed:
            self._file.close()
            self._lease.close()

    @override
    def finish(self) -> None:
        data = {"at": now(), "num_records": len(self._journal.records())}
        # The columns contain the last line of the journal; they are written first and valid once it is there.
        export_records(self.folder, self._journal, b"" if self.finished else encode("finished", data))
        if not self.finished:
            self._write("finished", data)

    @override
    def _write(self, kind: str, data: Any) -> None:
        self._journal.add(kind, data)
        self._file.write(encode(kind, data))
        self._file.flush()
        os.fsync(self._file.fileno())


def _settle(folder: Path, manifest: RunManifest) -> RunManifest:
    """The manifest that counts: the one in `folder` if it describes the same run, else this one, now written.

    Raises:
        ConfigError: the folder holds a different run.
    """
    path = folder / MANIFEST
    if not path.exists():
        text = json.dumps(manifest.to_json(), indent=1, ensure_ascii=False, allow_nan=False)
        # An argument that is not valid in the locale holds halves of characters; written as escapes of JSON.
        write_whole(path, f"{text}\n".encode("utf-8", "backslashreplace"))
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
        return read_journal(run_folder(self.root / run_id) / JOURNAL).finished

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
    lines = "".join(json.dumps(record.to_json(), separators=(",", ":")) + "\n" for record in records)
    write_whole(folder / RECORDS, lines.encode())
    written = (folder / JOURNAL).read_bytes()
    about = About.of(journal, len(written) + len(end), end or written.splitlines(keepends=True)[-1])
    write_whole(folder / COLUMNS, encode_columns(records, about))


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
    manifest = read_manifest(folder / MANIFEST)
    journal = read_journal(folder / JOURNAL)
    return Run(
        folder=str(folder),
        manifest=manifest,
        records=journal.records(),
        nulls=journal.nulls(),
        exhibits=journal.exhibits(),
        probes=journal.probes,
        failures=journal.failures(),
        finished=journal.finished,
    )


def load_runs(root: Path) -> list[Run]:
    """Read all runs below `root` by name, packed ones too; an empty folder (an early crash) is skipped.

    Records stay in an export that is of its journal until they are asked for. Raises what `load_run` does;
    nothing is passed over because it cannot be read.
    """
    if not root.is_dir():
        raise ConfigError(f"{root}: no such folder. `python -m harness.bench` measures runs into it.")
    folders = run_folders(root).values()
    return [_load_columns(folder) or load_run(folder) for folder in folders if _has_content(folder)]


def _load_columns(folder: Path) -> Run | None:
    """A run whose records stay in its export; None if it has no export that matches its journal."""
    if (about := read_about(folder)) is None:
        return None
    return Run(
        folder=str(folder),
        manifest=read_manifest(folder / MANIFEST),
        records=StoredRecords(folder, about.num_records),
        nulls=about.nulls,
        exhibits=StoredExhibits(folder, about.num_exhibits),
        probes=about.probes,
        failures=about.failures,
        finished=True,
    )


def _has_content(folder: Path) -> bool:
    return any(child.name != LOCK and not child.name.endswith(PART) for child in folder.iterdir())


def read_manifest(path: Path) -> RunManifest:
    """Read the manifest of a run; raises the errors of `load_run`."""
    try:
        data = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise ConfigError(
            f"{path.parent}: has no {MANIFEST}, so it is not a run folder. Move it away."
        ) from None
    except ValueError as error:
        raise CorruptJournal(
            f"{path}: is not JSON ({error}). Restore it, or move the folder away."
        ) from error
    version = data.get("schema_version") if isinstance(data, dict) else None
    if version not in READABLE_VERSIONS:
        raise ConfigError(
            f"{path}: has schema version {version}, this harness reads"
            f" {' and '.join(map(str, READABLE_VERSIONS))}. {_remedy(path, version)}"
        )
    try:
        return RunManifest.from_json(data)
    except (TypeError, KeyError) as error:
        raise CorruptJournal(f"{path}: {error}. Restore it, or move the folder away.") from error


def _remedy(path: Path, version: object) -> str:
    if not isinstance(version, int) or version > SCHEMA_VERSION:
        return "Read it with the harness that wrote it, or measure again."
    return f"Type python -m harness.report migrate --results {path.parents[2]}"
