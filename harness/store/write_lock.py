"""A lease on a run folder: a lock against a second writer, and a heartbeat that other nodes can see.

The lock keeps a second writer out on every file system whose `flock` reaches all nodes (a local disk, NFS,
Lustre mounted with `flock`). The heartbeat is the time of the lock file's last change. It shows readers
whether the writer is alive, and keeps a writer on another node out where `flock` does not.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from pathlib import Path
from typing import NamedTuple

import psutil

from harness.config import ConfigError

LOCK = "lock"
BEAT_S, LAPSE_S = 15.0, 60.0
"""Seconds between heartbeats, and seconds without one after which a writer on another node counts as dead."""


class RunBusy(ConfigError):
    """Another process is writing this run."""


class Holder(NamedTuple):
    """The process that writes a run."""

    host: str
    pid: int


class Lease:
    """The exclusive right to write a run folder, released by `close` or by the end of the process."""

    def __init__(self, folder: Path) -> None:
        """Acquire the lease.

        Raises:
            RunBusy: another process holds it.
        """
        import fcntl  # not on Windows, where runs can still be read

        self._descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            try:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise _busy(folder) from None
            _outlast(folder)
            os.truncate(self._descriptor, 0)
            os.pwrite(self._descriptor, json.dumps(_here()._asdict()).encode() + b"\n", 0)
        except BaseException:
            os.close(self._descriptor)
            raise
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="lease", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Release the lease."""
        self._over.set()
        self._thread.join()
        os.truncate(self._descriptor, 0)
        os.close(self._descriptor)

    def _beat(self) -> None:
        while not self._over.wait(BEAT_S):
            os.utime(self._descriptor)


def holder(folder: Path) -> Holder | None:
    """The process that writes the run, None if there is none.

    The death of a writer on another node is noticed after `LAPSE_S` seconds.
    """
    written, beat = _read(folder)
    if written is None or time.time() - beat > LAPSE_S:
        return None
    return written if written.host != _here().host or psutil.pid_exists(written.pid) else None


def last_holder(folder: Path) -> Holder | None:
    """The last writer that did not release its lease: it is still writing, or it was killed."""
    return _read(folder)[0]


def _read(folder: Path) -> tuple[Holder | None, float]:
    """The holder of the lock and the time of the last heartbeat.

    The file is opened each time, because NFS does not refresh the times of an open file.
    """
    try:
        with (folder / LOCK).open() as file:
            text, beat = file.read(), os.fstat(file.fileno()).st_mtime
        return Holder(**json.loads(text)), beat
    except (OSError, ValueError, TypeError):
        # There is no lock file, or it is empty, or an older version wrote a bare number.
        return None, 0.0


def _outlast(folder: Path) -> None:
    """Wait long enough to see whether a writer on another node still sends heartbeats.

    Raises:
        RunBusy: it does.
    """
    written, beat = _read(folder)
    if written is None or written.host == _here().host:
        return
    left = min(LAPSE_S, beat + LAPSE_S - time.time())
    if left > 0:
        time.sleep(left)
        if _read(folder)[1] != beat:
            raise _busy(folder)


def _busy(folder: Path) -> RunBusy:
    written, _ = _read(folder)
    who = f"process {written.pid} on {written.host}" if written else "an unknown process"
    return RunBusy(
        f"{folder}: {who} is writing this run. Wait until it ends (calling again then resumes"
        " the run or finds it done), or measure beside it: `replicate=N` with a number not yet used."
    )


def _here() -> Holder:
    return Holder(socket.gethostname(), os.getpid())
