"""A lease on a run folder: a lock against a second writer, and a heartbeat that other nodes can see.

The lock keeps a second writer out on every file system whose `flock` reaches all nodes (a local disk, NFS,
Lustre mounted with `flock`). The heartbeat is the time of the lock file's last change. It shows readers
whether the writer is alive, and keeps a writer on another node out where `flock` does not.
"""

from __future__ import annotations

import json
import os
import socket
import stat
import threading
import time
from pathlib import Path
from typing import NamedTuple

import psutil

from harness.config import ConfigError
from harness.store.integrity.paths import is_local, open_file, refuse_link
from harness.store.integrity.shapes import read_json

LOCK = "lock"
_MAX_BYTES, _MAX_PID = 4096, 2**31
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
        self._descriptor = open_to_write(folder / LOCK)
        try:
            lock_or_refuse(self._descriptor, folder)
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
        """Release the lease; calling it again changes nothing."""
        if self._over.is_set():
            return
        self._over.set()
        self._thread.join()
        os.truncate(self._descriptor, 0)
        os.close(self._descriptor)

    def _beat(self) -> None:
        while not self._over.wait(BEAT_S):
            os.utime(self._descriptor)


def open_to_write(path: Path) -> int:
    """A descriptor of a plain file of a run folder, made if it is missing; its content stays.

    Raises:
        ConfigError: it is a link or no plain file.
    """
    refuse_link(path)
    try:
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        descriptor = os.open(path, flags, 0o644)
    except IsADirectoryError:
        raise ConfigError(f"{path}: is no plain file; move it away.") from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ConfigError(f"{path}: is no plain file; move it away.")
    return descriptor


def lock_or_refuse(descriptor: int, folder: Path, is_known: bool = True) -> None:
    """Lock an open file of a run folder; raises RunBusy if another process has.

    is_known: whether the lock file says which process that is.
    """
    import fcntl  # not on Windows, where runs can still be read

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise _busy(folder, is_known) from None


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
    if not is_local(folder):
        return None, 0.0
    try:
        with open_file(folder / LOCK, _MAX_BYTES) as file:
            text, beat = file.read(), os.fstat(file.fileno()).st_mtime
        written: Holder = read_json(Holder, text)
    except (OSError, ValueError):
        # There is no lock file, or it is empty, or an older version wrote a bare number.
        return None, 0.0
    return (written, beat) if 0 < written.pid < _MAX_PID else (None, 0.0)


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


def _busy(folder: Path, is_known: bool = True) -> RunBusy:
    written, _ = _read(folder)
    who = f"process {written.pid} on {written.host}" if written else "an unknown process"
    if not is_known:
        who = "another process, whose lock file was deleted,"
    return RunBusy(
        f"{folder}: {who} is writing this run. Wait until it ends (calling again then resumes"
        " the run or finds it done), or measure beside it: `replicate=N` with a number not yet used."
    )


def _here() -> Holder:
    return Holder(socket.gethostname(), os.getpid())
