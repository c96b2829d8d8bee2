"""The lock that gives a timed run its processor cores or GPUs to itself on this machine.

Two timed runs never share a core or a GPU: the second one waits, whoever started it and by whatever means.
Runs that are not timed share among themselves, but not with a timed run, which they would disturb. Requests
are served in the order of their arrival, so that a stream of untimed runs cannot starve a timed one.
"""

from __future__ import annotations

import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from harness.config import ConfigError
from harness.system.progress import waiting

if TYPE_CHECKING:
    import torch

FOLDER = "SPECBENCH_LOCKS"
"""Environment variable: a folder that all jobs of this machine see, for where each has its own /dev/shm."""
_CPUS = Path("/sys/devices/system/cpu")


@contextmanager
def machine_lock(units: Sequence[str], timed: bool, note: Callable[[str], None]) -> Iterator[None]:
    """Hold `units` while the block runs: alone if `timed`, else together with other untimed runs.

    Waits where they are taken, and reports the wait through `note`. The operating system releases the lock
    when the process dies.

    units: names from `units_of`.

    Raises:
        ConfigError: see `_opened`.
    """
    import fcntl  # not on Windows, where runs can still be read

    begin = time.monotonic()
    waited = False

    def take(descriptor: int, how: int) -> None:
        nonlocal waited
        try:
            fcntl.flock(descriptor, how | fcntl.LOCK_NB)
        except BlockingIOError:
            if not waited:
                other = "a run" if timed else "a timed run"
                note(f"waiting for {other} that has {', '.join(units)} of this machine")
            waited = True
            with waiting("waiting for the other run to end"):
                fcntl.flock(descriptor, how)

    with ExitStack() as stack:
        # All processes lock in this order, so no two of them wait for one another.
        for unit in sorted(units):
            turn, own = (stack.enter_context(_opened(unit + suffix)) for suffix in (".turn", ""))
            # Whoever waits for the unit keeps its turn lock, so later processes queue behind it.
            take(turn, fcntl.LOCK_EX)
            take(own, fcntl.LOCK_EX if timed else fcntl.LOCK_SH)
            fcntl.flock(turn, fcntl.LOCK_UN)
        if waited:
            note(f"waited {time.monotonic() - begin:.0f} s")
        yield


def units_of(device: torch.device, spread: bool) -> list[str]:
    """Names of the GPUs that a run occupies, or of the cores that this process may run on.

    device: the target's. spread: whether its layers may be on every GPU.
    """
    if device.type == "cuda":
        import torch

        indices = range(torch.cuda.device_count()) if spread else [device.index or 0]
        return [f"gpu-{torch.cuda.get_device_properties(index).uuid}" for index in indices]
    if os.environ.get("LOCAL_RANK", "0") != "0":
        # A run of several processes: the first one holds the cores for all of them.
        return []
    return [f"core-{core}" for core in cores()]


def cores() -> list[int]:
    """The cores that this process may run on, each named by its first hardware thread."""
    affinity = getattr(os, "sched_getaffinity", None)
    allowed = affinity(0) if affinity else range(os.cpu_count() or 1)
    return sorted({_first_thread(cpu) for cpu in allowed})


def _first_thread(cpu: int) -> int:
    try:
        siblings = (_CPUS / f"cpu{cpu}/topology/thread_siblings_list").read_text()
    except OSError:
        return cpu
    return int(re.split("[,-]", siblings)[0])


@contextmanager
def _opened(name: str) -> Iterator[int]:
    """The descriptor of a lock file. Nothing is ever written to it: the file may belong to another user.

    Raises:
        ConfigError: the folder that the environment names does not exist.
    """
    given, shared = os.environ.get(FOLDER), Path("/dev/shm")
    folder = Path(given) if given else shared if shared.is_dir() else Path(tempfile.gettempdir())
    if given and not folder.is_dir():
        # Not made here: with a misspelt one, jobs would no longer wait for one another.
        raise ConfigError(f"{FOLDER}={given}: no such folder; create it, or leave the variable out")
    path, how = folder / f"specbench.{name}.lock", os.O_RDONLY | os.O_NOFOLLOW
    try:
        descriptor = os.open(path, how)
    except FileNotFoundError:
        # Not plain O_CREAT: in a sticky folder Linux refuses that for a file which another user owns.
        with suppress(FileExistsError):
            descriptor = os.open(path, how | os.O_CREAT | os.O_EXCL, 0o644)
            os.fchmod(descriptor, 0o644)
            os.close(descriptor)
        descriptor = os.open(path, how)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
