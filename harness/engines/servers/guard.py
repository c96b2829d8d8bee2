"""Runs a command and ends it, with all that it started, once nobody holds this process's standard input.

    python guard.py COMMAND [ARGUMENT ...]

The harness holds the other end of that pipe. The operating system closes it however the harness ends, kill -9
included, so no server outlives a run. SIGTERM has the same effect. The exit status is the command's.

It is started as a file and imports little, so that it costs no memory beside the server.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import subprocess
import sys
import time
from contextlib import suppress

import psutil

_GRACE_S = 10.0
"""Seconds between the request to end and the kill."""
_POLL_S = 0.5
_SET_DEATH_SIGNAL, _SET_SUBREAPER = 1, 36
"""Options of Linux' prctl(2): PR_SET_PDEATHSIG and PR_SET_CHILD_SUBREAPER."""


def _prctl(option: int, value: int) -> None:
    """Call prctl(2) where there is one; elsewhere the pipe alone has to do."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def _descendants() -> list[psutil.Process]:
    with suppress(psutil.Error):
        return psutil.Process().children(recursive=True)
    return []


def end_all(grace_s: float = _GRACE_S) -> None:
    """Ask every descendant to end, wait, and kill what is left, also what starts meanwhile."""
    for number in (signal.SIGTERM, signal.SIGCONT):
        # A process that was stopped while another server is measured must run to end.
        for one in _descendants():
            with suppress(psutil.Error):
                one.send_signal(number)
    psutil.wait_procs(_descendants(), timeout=grace_s)
    while left := _descendants():
        for one in left:
            with suppress(psutil.Error):
                one.kill()
        psutil.wait_procs(left, timeout=_POLL_S)


def main(command: list[str]) -> int:
    """Run `command` until it ends, or standard input does; its exit status."""
    # Processes that the server's own processes leave behind become children of this one, and are found.
    _prctl(_SET_SUBREAPER, 1)
    guard = os.getpid()
    asked = False

    def ask(*_: object) -> None:
        nonlocal asked
        asked = True

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, ask)

    def tie() -> None:
        # Runs between fork and exec: if this guard is killed, so is the server.
        _prctl(_SET_DEATH_SIGNAL, signal.SIGKILL)
        if os.getppid() != guard:
            os._exit(1)

    server = subprocess.Popen(command, stdin=subprocess.DEVNULL, preexec_fn=tie)
    while server.poll() is None and not asked:
        with suppress(InterruptedError):
            readable, _, _ = select.select([sys.stdin], [], [], _POLL_S)
            # What is written there means nothing; the end of the pipe does.
            asked |= bool(readable) and not os.read(sys.stdin.fileno(), 1)
    begin = time.monotonic()
    end_all()
    with suppress(subprocess.TimeoutExpired):
        server.wait(timeout=max(_GRACE_S - (time.monotonic() - begin), _POLL_S))
    return server.returncode if server.returncode is not None else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]) & 0xFF)
