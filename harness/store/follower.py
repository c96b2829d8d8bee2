"""The store as a process sees it that measures along with the first one: the same calls write no file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from typing_extensions import override

from harness.store.journal import Journal, RunWriter
from harness.store.records import Cell, Failure, RunManifest
from harness.store.run_store import MANIFEST, ResultStore, read_folder


class FollowedRun(RunWriter):
    """A run that the first process writes to disk: the journal of this process stays in memory."""

    def __init__(self, folder: Path, manifest: RunManifest) -> None:
        """Read which blocks are finished.

        The first process adds no block that this one has not measured too, so both see the same.
        """
        known = read_folder(folder)[1] if (folder / MANIFEST).exists() else Journal()
        journal = Journal(blocks=known.blocks, set_aside=known.set_aside, finished=known.finished)
        super().__init__(folder, manifest, journal)

    @override
    def close(self) -> None:
        # Nothing is held: the first process has the lock.
        pass

    @override
    def finish(self) -> None:
        # The first process writes the end of the run.
        pass

    @override
    def _write(self, kind: str, entry: Any) -> None:
        self._journal.add(kind, entry)


class FollowedStore(ResultStore):
    """A store that the first process writes."""

    @override
    def check_writable(self) -> None:
        # The first process checks it.
        pass

    @override
    def open_run(self, manifest: RunManifest) -> RunWriter:
        return FollowedRun(self.root / manifest.run_id, manifest)

    @override
    def write_failed_cell(self, failure: Failure, cell: Cell, **_: Any) -> Path:
        # The first process fails in the same way and writes that down.
        return self.root
