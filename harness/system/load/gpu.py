"""Who else uses a GPU, and whether heat or power slows it down, as its driver says through NVML."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

_SLOWDOWNS = {0x08: "hardware slowdown", 0x20: "heat", 0x40: "heat (hardware)", 0x80: "power brake"}
"""Bits of NVML's clock event reasons that say that the GPU cannot do what it is asked to.

The cap on its power is not among them: boards run at it by design, whoever uses them.
"""


class GpuState(NamedTuple):
    """One look at a GPU; None is not known."""

    num_others: int | None
    """Compute processes that are not of this run."""
    others_share: float | None
    """Share of the time since the look before in which their kernels ran."""
    sm_mhz: int | None
    slowdowns: tuple[str, ...]


class GpuWatch:
    """Looks at one GPU through NVML."""

    def __init__(self, nvml: Any, handle: Any, own: Sequence[int]) -> None:
        """nvml: the module `pynvml`. handle: the device. own: ids of the processes of this run."""
        self._nvml, self._handle, self._own = nvml, handle, set(own)
        self._seen_us = 0

    def __call__(self) -> GpuState:
        """Look once; takes about a millisecond."""
        nvml, handle = self._nvml, self._handle
        running = self._ask(lambda: nvml.nvmlDeviceGetComputeRunningProcesses(handle))
        pids = None if running is None else {process.pid for process in running}
        reasons = self._ask(lambda: _event_reasons(nvml)(handle)) or 0
        return GpuState(
            num_others=self._num_others(pids),
            others_share=self._others_share(pids),
            sm_mhz=self._ask(lambda: int(nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM))),
            slowdowns=tuple(name for bit, name in _SLOWDOWNS.items() if reasons & bit),
        )

    def _num_others(self, pids: set[int] | None) -> int | None:
        if not pids:
            return None
        # In a container NVML has the host's ids, which this process does not know; one of them is its own.
        return len(pids - self._own) if pids & self._own else len(pids) - 1

    def _others_share(self, pids: set[int] | None) -> float | None:
        """None also where the driver keeps no samples, and in a container, where own samples have no name."""
        samples = self._ask(
            lambda: self._nvml.nvmlDeviceGetProcessUtilization(self._handle, self._seen_us), default=[]
        )
        self._seen_us = max([self._seen_us, *(int(sample.timeStamp) for sample in samples)])
        if not pids or not pids & self._own:
            return None
        if pids <= self._own:
            return 0.0
        used: dict[int, int] = {}
        for sample in samples:
            if sample.pid not in self._own:
                used[sample.pid] = max(used.get(sample.pid, 0), int(sample.smUtil))
        return min(sum(used.values()) / 100, 1.0) if samples else None

    def _ask(self, question: Callable[[], Any], default: Any = None) -> Any:
        try:
            return question()
        except self._nvml.NVMLError:
            return default


def _event_reasons(nvml: Any) -> Any:
    """The call has another name in older versions of the library."""
    newer = getattr(nvml, "nvmlDeviceGetCurrentClocksEventReasons", None)
    return newer or nvml.nvmlDeviceGetCurrentClocksThrottleReasons


def gpu_watch(uuid: str, own: Sequence[int] = ()) -> GpuWatch | None:
    """A watch of the GPU with this UUID; None without NVML.

    own: ids of further processes of this run.
    """
    found = find_gpu(uuid)
    return GpuWatch(*found, [os.getpid(), *own]) if found else None


def find_gpu(uuid: str) -> tuple[Any, Any] | None:
    """The module `pynvml`, initialised, and its handle of the GPU with this UUID.

    None without NVML (the package `nvidia-ml-py`, extra `gpu`), or where it does not know the GPU.
    """
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
        return pynvml, pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid.removeprefix('GPU-')}")
    except pynvml.NVMLError:
        return None
