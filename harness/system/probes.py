"""Probes of the machine: read bandwidth, size of the last cache, energy and memory."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path

import psutil
import torch

from harness.system.clock import synchronize


@cache
def read_bandwidth(device: torch.device, gib: float | None = None, num_passes: int = 10) -> float:
    """Bytes per second that a sum over a written buffer of `gib` GiB reads; the best of `num_passes`.

    gib: see `Measure.bandwidth_gib`. A read, not a copy: a copy moves its size twice. Measured once a
    process, so that all its runs have one roof.
    """
    if gib is not None:
        num_bytes = int(gib * 2**30)
    elif device.type == "cpu":
        num_bytes = max(2**30, 4 * last_level_cache_bytes())
    else:
        torch.cuda.empty_cache()
        # Less than this and caches could hold it; where there is not so much, it is out of memory.
        num_bytes = min(2**33, max(2**29, torch.cuda.mem_get_info(device)[0] // 2))
    buffer = torch.ones(num_bytes // 4, dtype=torch.float32, device=device)
    best = 0.0
    for _ in range(num_passes):
        synchronize(device)
        begin = time.perf_counter_ns()
        buffer.sum()
        synchronize(device)
        best = max(best, buffer.nbytes / ((time.perf_counter_ns() - begin) * 1e-9))
    return best


def last_level_cache_bytes(root: Path = Path("/sys/devices/system/cpu")) -> int:
    """Of all processors together, as Linux tells it below `root`; 0 where it does not."""
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
    """What reads the device's meter in millijoules; None where it has none (a CPU, GPUs before Volta)."""
    if device.type != "cuda":
        return None
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
        pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except pynvml.NVMLError:
        return None
    return lambda: int(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle))


def energy_mj(device: torch.device) -> int | None:
    """Millijoules that the device has used since its driver was loaded (NVML); None where it cannot tell."""
    meter = _energy_meter(device)
    return None if meter is None else meter()


def peak_memory_bytes(device: torch.device) -> int:
    """The most the device (or, on a CPU, this process) has held."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return int(getattr(psutil.Process().memory_info(), "peak_wset", 0)) or _peak_resident_bytes()


def _peak_resident_bytes() -> int:
    import resource  # not on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
