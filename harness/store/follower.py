"""Following: the store as a process sees it whose first process writes: the same calls, and no file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from harness.store.journal import JOURNAL, Journal, read_journal
from harness.store.records import Cell, Failure, RunManifest
from harness.store.run_store import OpenRun, ResultStore


class FollowedRun(OpenRun):
    """A run that the first process writes."""

    def __init__(self, folder: Path, manifest: RunManifest) -> None:
        """Read what is finished of it. The first process adds no block that this one has not measured too."""
        self.folder, self.manifest, self.healed = folder, manifest, ""
        known = read_journal(folder / JOURNAL)
        self._journal = Journal(blocks=known.blocks, finished=known.finished)

    def close(self) -> None:
        """Nothing is held."""

    def finish(self) -> None:
        """The first process says so."""

    def _write(self, kind: str, data: Any) -> None:
        self._journal.add(kind, data)


class FollowedStore(ResultStore):
    """A store that the first process writes."""

    def check_writable(self) -> None:
        """The first process looks."""

    def open_run(self, manifest: RunManifest) -> OpenRun:
        """Take part in the run of `manifest.run_id`."""
        return FollowedRun(self.root / manifest.run_id, manifest)

    def write_failed_cell(self, failure: Failure, cell: Cell, **_: Any) -> Path:
        """The first process fails as this one does, and says so."""
        return self.root
