"""Measurements of the machine: read bandwidth, size of the last-level cache, energy and peak memory."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path

import psutil
import torch

from harness.system.clock import synchronize
from harness.system.load.gpu import find_gpu


@cache
def read_bandwidth(device: torch.device, gib: float | None = None, num_passes: int = 10) -> float:
    """Read bandwidth in bytes per second: the best of `num_passes` sums over a buffer that was written.

    The probe reads and does not copy, because a copy moves every byte twice. It is measured once per process,
    so that all runs of the process share one roofline.

    gib: size of the buffer in GiB; None lets it exceed the caches (`Measure.bandwidth_gib`).
    """
    if gib is not None:
        num_bytes = int(gib * 2**30)
    elif device.type == "cpu":
        num_bytes = max(2**30, 4 * last_level_cache_bytes())
    else:
        torch.cuda.empty_cache()
        # A smaller buffer could fit into the caches. A GPU with less free memory than this runs out of it.
        num_bytes = min(2**33, max(2**29, torch.cuda.mem_get_info(device)[0] // 2))
    buffer = torch.ones(num_bytes // 4, dtype=torch.float32, device=device)
    return _fastest_read(buffer, num_passes)


class ShortProbe:
    """A read-bandwidth probe of some 50 ms, to see whether the bandwidth changes during a run.

    Its results compare with one another only, because the buffer is small. It is allocated for each look, so
    that it counts in no arm's peak memory.
    """

    def __init__(self, device: torch.device, gib: float | None = None) -> None:
        """gib: the largest size of the buffer in GiB; it never has more than 1 GiB."""
        num_bytes = 2**28 if device.type == "cuda" else min(2**30, max(2**28, 2 * last_level_cache_bytes()))
        if gib is not None:
            num_bytes = min(num_bytes, int(gib * 2**30))
        self._num_floats, self._device = num_bytes // 4, device

    def __call__(self) -> float:
        """Bytes per second: the best of three reads, so that a single interruption does not count."""
        buffer = torch.ones(self._num_floats, dtype=torch.float32, device=self._device)
        return _fastest_read(buffer, num_passes=3)


def _fastest_read(buffer: torch.Tensor, num_passes: int) -> float:
    best = 0.0
    for _ in range(num_passes):
        synchronize(buffer.device)
        begin = time.perf_counter_ns()
        buffer.sum()
        synchronize(buffer.device)
        best = max(best, buffer.nbytes / ((time.perf_counter_ns() - begin) * 1e-9))
    return best


def last_level_cache_bytes(root: Path = Path("/sys/devices/system/cpu")) -> int:
    """Total size of the last-level caches of all processors, from Linux's sysfs at `root`; 0 if unknown."""
    found: dict[int, dict[str, int]] = {}
    for folder in root.glob("cpu[0-9]*/cache/index[0-9]*"):
        with suppress(OSError, ValueError):
            level, shared, size = (
                (folder / name).read_text().strip() for name in ("level", "shared_cpu_list", "size")
            )
            found.setdefault(int(level), {})[shared] = int(size.removesuffix("K")) * 1024
    return sum(found[max(found)].values()) if found else 0


@cache
def _energy_meter(device: torch.device) -> Callable[[], int] | None:
    """A function that reads the device's energy counter in mJ; None without one (CPUs, GPUs before Volta)."""
    if device.type != "cuda":
        return None
    found = find_gpu(str(torch.cuda.get_device_properties(device).uuid))
    if found is None:
        return None
    nvml, handle = found
    try:
        nvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except nvml.NVMLError:
        return None
    return lambda: int(nvml.nvmlDeviceGetTotalEnergyConsumption(handle))


def energy_mj(device: torch.device) -> int | None:
    """Millijoules used by the device since its driver was loaded (NVML); None if it has no counter."""
    meter = _energy_meter(device)
    return None if meter is None else meter()


def peak_memory_bytes(device: torch.device) -> int:
    """Peak memory allocated on a GPU, or peak resident memory of this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return int(getattr(psutil.Process().memory_info(), "peak_wset", 0)) or _peak_resident_bytes()


def _peak_resident_bytes() -> int:
    import resource  # not on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
