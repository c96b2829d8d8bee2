"""Work done in a forked process, which may be killed and whose traceback is caught."""

from __future__ import annotations

import os
import signal
import time
import traceback
from collections.abc import Callable, Sequence

# Loaded before any child is forked, so that none spends its time on it.
import pandas  # noqa: F401
import pyarrow.parquet  # type: ignore[import-untyped]  # noqa: F401

from scripts.faults.tally import Tally

LIMIT_S = 120
"""Seconds after which a child that may not be killed counts as hanging."""
_TRACEBACK = "TRACEBACK "

Send = Callable[[str], None]
"""A function by which a child sends a line to its parent."""
Work = Callable[[Send], None]


def run(work: Work, kill_after_s: float | None = None) -> tuple[list[str], int | None]:
    """The lines that a child sent, and its exit status: None if it was killed as asked or did not end."""
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(reading)
        _in_child(work, writing)
    os.close(writing)
    deadline = time.monotonic() + (LIMIT_S if kill_after_s is None else kill_after_s)
    status = None
    while status is None and time.monotonic() < deadline:
        done, code = os.waitpid(pid, os.WNOHANG)
        status = os.waitstatus_to_exitcode(code) if done else None
        if not done:
            time.sleep(0.0005)
    if status is None:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    with os.fdopen(reading, "rb") as pipe:
        return pipe.read().decode().splitlines(), status


def run_to_end(tally: Tally, work: Work, where: str) -> list[str]:
    """The lines of a child that should end by itself; counts its traceback, or that it hangs."""
    lines, status = run(work)
    count_traceback(tally, lines, where)
    if status is None:
        tally.fault("hangs", where)
    return without_traceback(lines)


def run_and_kill(tally: Tally, work: Work, kill_after_s: float, where: str) -> list[str]:
    """The lines of a child that is killed unless it ends before; counts the kill, or that it ended."""
    lines, status = run(work, kill_after_s)
    count_traceback(tally, lines, where)
    tally.tried += status is None
    tally.how["killed" if status is None else "ended before"] += 1
    return without_traceback(lines)


def count_traceback(tally: Tally, lines: Sequence[str], where: str) -> None:
    """Count a traceback among the lines of a child."""
    for line in lines:
        if line.startswith(_TRACEBACK):
            tally.fault("tracebacks", f"{where}: {line}")


def without_traceback(lines: Sequence[str]) -> list[str]:
    """The lines that the work itself sent."""
    return [line for line in lines if not line.startswith(_TRACEBACK)]


def _in_child(work: Work, writing: int) -> None:
    def send(line: str) -> None:
        os.write(writing, f"{line}\n".encode())

    status = 0
    try:
        work(send)
    except BaseException:
        send(_TRACEBACK + " | ".join(traceback.format_exc().splitlines()[-6:]))
        status = 3
    finally:
        os._exit(status)
