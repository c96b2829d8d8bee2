"""Readings of the machine's clocks and counters, and what happened between two of them.

Counters come from psutil, which reads /proc/stat and its likes on every system; clocks are the kernel's.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import NamedTuple

import psutil

from harness.system.processes import num_processes

_CGROUPS = Path("/sys/fs/cgroup")
_num_continued = 0
"""How often this process was continued after a stop, since `counting_stops` first looked."""


class Counters(NamedTuple):
    """One reading, in seconds since arbitrary moments; None where this system has no such counter."""

    wall_s: float
    """A monotonic clock that stands still while the machine sleeps."""
    asleep_s: float | None
    """How long the machine has slept."""
    busy_s: float
    """Processor time that anybody used on the cores of `CounterReader`."""
    waiting_s: float
    """Time for which these cores were idle because of a disk."""
    stolen_s: float | None
    """Time that the hypervisor gave to other machines."""
    own_s: float
    """Processor time of the run: this process, its children, and those that torchrun started with it."""
    helpers_s: float
    """The part of `own_s` that other processes used, as servers that this one has started."""
    thread_s: float
    """Processor time of the thread that reads."""
    throttled_s: float | None
    """Time for which a quota held the process back."""
    num_continued: int
    """How often this process was continued after a stop."""


class Usage(NamedTuple):
    """What happened between two readings; processor time in seconds over all cores of the reader."""

    wall_s: float
    slept_s: float | None
    own_s: float
    others_s: float
    stolen_s: float | None
    throttled_s: float | None
    missing_s: float
    """Wall time in which the reading thread did not run, and in which nothing that could have kept it waiting
    ran either: other processes (also servers of the run), other machines, a disk, a quota. Means something
    only for a thread that computes all the time, or waits for what does."""
    num_stops: int


def usage(before: Counters, after: Counters) -> Usage:
    """What happened between two readings of one reader.

    Counters tick in hundredths of a second and not at the same moment, so small differences below zero are 0.
    """

    def passed(name: str) -> float | None:
        begin, end = getattr(before, name), getattr(after, name)
        return None if begin is None or end is None else max(end - begin, 0.0)

    wall_s, own_s = after.wall_s - before.wall_s, passed("own_s") or 0.0
    others_s = max((passed("busy_s") or 0.0) - own_s, 0.0)
    stolen_s, throttled_s = passed("stolen_s"), passed("throttled_s")
    told = (stolen_s, throttled_s, passed("waiting_s"), passed("helpers_s"))
    excused_s = others_s + sum(one or 0.0 for one in told)
    return Usage(
        wall_s=wall_s,
        slept_s=passed("asleep_s"),
        own_s=own_s,
        others_s=others_s,
        stolen_s=stolen_s,
        throttled_s=throttled_s,
        missing_s=max(wall_s - (passed("thread_s") or 0.0) - excused_s, 0.0),
        num_stops=after.num_continued - before.num_continued,
    )


def together(parts: Sequence[Usage]) -> Usage:
    """What happened in consecutive spans as one; what one of them does not know is not known of the whole."""

    def total(values: Sequence[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return sum(known) if len(known) == len(values) else None

    return Usage(*(total(values) for values in zip(*parts, strict=True)))  # type: ignore[arg-type]


class CounterReader:
    """Reads the counters of the cores on which this process may run. A reading takes some 0.2 ms."""

    def __init__(self) -> None:
        affinity = getattr(os, "sched_getaffinity", None)
        self._cores = sorted(affinity(0)) if affinity else list(range(psutil.cpu_count() or 1))
        self._quota = _quota_file()
        self.refresh()

    @property
    def num_cores(self) -> int:
        """Logical cores that are read."""
        return len(self._cores)

    @property
    def family(self) -> list[int]:
        """Ids of the processes that belong to the run."""
        return [process.pid for process in self._family]

    def refresh(self) -> None:
        """Look up anew which processes belong to the run; costs some milliseconds."""
        own = psutil.Process()
        # torchrun's processes are siblings, and share the work.
        root = (own.parent() or own) if num_processes() > 1 else own
        self._family = [root, *root.children(recursive=True)]

    def __call__(self) -> Counters:
        """Read everything."""
        every = psutil.cpu_times(percpu=True)
        times = [every[core] for core in self._cores if core < len(every)]

        def total(*names: str) -> float:
            return float(sum(getattr(one, name, 0.0) for one in times for name in names))

        own_s, alone = sum(map(_process_s, self._family)), os.times()
        return Counters(
            wall_s=time.monotonic(),
            asleep_s=_asleep_s(),
            # The time of guests is part of `user`. Interrupts have other names on other systems.
            busy_s=total("user", "nice", "system", "irq", "softirq", "interrupt", "dpc"),
            waiting_s=total("iowait"),
            stolen_s=total("steal") if times and hasattr(times[0], "steal") else None,
            own_s=own_s,
            helpers_s=max(own_s - alone.user - alone.system, 0.0),
            thread_s=time.thread_time(),
            throttled_s=_throttled_s(self._quota),
            num_continued=_num_continued,
        )


def _process_s(process: psutil.Process) -> float:
    """Processor time of a process and of its children that have ended; 0 for one that has ended itself."""
    with suppress(psutil.Error):
        times = process.cpu_times()
        return float(times.user + times.system + times.children_user + times.children_system)
    return 0.0


def _asleep_s() -> float | None:
    """Seconds for which the machine has been suspended since it booted; Linux alone has both clocks."""
    boottime = getattr(time, "CLOCK_BOOTTIME", None)
    if boottime is None:
        return None
    return time.clock_gettime(boottime) - time.clock_gettime(time.CLOCK_MONOTONIC)


def _quota_file(root: Path = _CGROUPS, own: Path = Path("/proc/self/cgroup")) -> Path | None:
    """The file in which the kernel counts for how long a quota held this process's control group back."""
    with suppress(OSError):
        for line in own.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers and "cpu" not in controllers.split(","):
                continue
            for folder in (root / controllers, root, root / "unified"):
                file = folder / path.lstrip("/") / "cpu.stat"
                if file.is_file() and _throttled_s(file) is not None:
                    return file
    return None


def _throttled_s(file: Path | None) -> float | None:
    """Seconds of throttling by a `cpu.stat` of either version of control groups; None if it counts none."""
    units = {"throttled_usec": 1e-6, "throttled_time": 1e-9}
    with suppress(OSError, ValueError):
        for line in file.read_text().splitlines() if file else ():
            name, _, value = line.partition(" ")
            if name in units:
                return int(value) * units[name]
    return None


@contextmanager
def counting_stops() -> Iterator[None]:
    """Count how often this process is continued after a stop (Ctrl-Z and `fg`, `kill -STOP`).

    The kernel says so by SIGCONT, which any process may listen to. Without it (on Windows, and outside the
    main thread, where Python lets nobody listen) only the clocks can show a stop.
    """
    continued = getattr(signal, "SIGCONT", None)
    if continued is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    earlier = signal.getsignal(continued)

    def count(number: int, frame: FrameType | None) -> None:
        global _num_continued
        _num_continued += 1
        if callable(earlier):
            earlier(number, frame)

    signal.signal(continued, count)
    try:
        yield
    finally:
        signal.signal(continued, earlier or signal.SIG_DFL)
