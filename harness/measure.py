"""Clock, time split, memory and bandwidth: how seconds and bytes are obtained, and what the probe costs."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Literal

import psutil
import torch
from pydantic import Field

from harness.config import configurable


@configurable
class Measure:
    """How much is measured. `full` is what the protocol asks for; `quick` and `acceptance` mark their rows.

    batch_size: sequences that run at the same time. waves: above 1, a block of interleaved arms is that many
    times as many conversations, which enter as others leave; a block's end, where places stay empty, counts.
    profile `acceptance` runs one untimed pass in batches of `batch_size`: tau and verdicts, no clock.
    repeats: timed repetitions of vanilla and every arm at temperature 0; sampled_repeats: above, a seed.
    rung_repeats, sampled_rung_repeats: the same for the rungs of the ladder; 0 leaves them out.
    num_warmup: prompts (outside the test set) run before the clock counts, per arm.
    num_null: conversations whose vanilla tokens are replayed for the null of the tie rate; None is all.
    order_seed: of the random order of arms within a prompt.
    bandwidth_gib: buffer of the read-bandwidth probe; None is 1, or four times the last-level cache if more,
    and on a device 8, or half of what is free: beside a read of less a launch is long.
    """

    profile: Literal["full", "quick", "acceptance"]
    repeats: int = Field(default=3, ge=1)
    sampled_repeats: int = Field(default=3, ge=1)
    rung_repeats: int = Field(default=3, ge=0)
    sampled_rung_repeats: int = Field(default=3, ge=0)
    num_warmup: int = Field(default=2, ge=0)
    num_null: int | None = Field(default=None, ge=0)
    batch_size: int = Field(default=1, ge=1)
    waves: int = Field(default=4, ge=1)
    order_seed: int = 0
    bandwidth_gib: float | None = Field(default=None, gt=0)

    @property
    def timed(self) -> bool:
        """Whether the clock counts."""
        return self.profile != "acceptance"

    @property
    def block_size(self) -> int:
        """Conversations that an arm is given together."""
        return self.batch_size * self.waves if self.batch_size > 1 else 1

    def repeats_at(self, greedy: bool) -> int:
        """Repetitions of an arm."""
        return self.repeats if greedy else self.sampled_repeats

    def rung_repeats_at(self, greedy: bool) -> int:
        """Repetitions of a rung; a rung has no batch and is there for its clock only."""
        if not self.timed or self.batch_size > 1:
            return 0
        return self.rung_repeats if greedy else self.sampled_rung_repeats


class Stopwatch:
    """Marks the ends of named spans: host time on a CPU, device events on a GPU (no synchronisation)."""

    def __init__(self, device: torch.device, enabled: bool = True):
        self._device, self._enabled = device, enabled
        self._cuda = device.type == "cuda"
        self._marks: list[tuple[str, int | torch.cuda.Event]] = []
        self._begin = 0

    def start(self) -> None:
        """Wait for the device and begin."""
        synchronize(self._device)
        self._marks = []
        self._begin = time.perf_counter_ns()
        self.lap("")

    def lap(self, name: str) -> None:
        """The time since the last mark belongs to `name`."""
        if not self._enabled:
            return
        if self._cuda:
            event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            event.record()
            self._marks.append((name, event))
        else:
            self._marks.append((name, time.perf_counter_ns()))

    def stop(self) -> int:
        """Wait for the device; nanoseconds since `start`, 0 where disabled."""
        synchronize(self._device)
        return time.perf_counter_ns() - self._begin if self._enabled else 0

    def spans(self) -> list[tuple[str, int]]:
        """Each lap's name and nanoseconds, in order; after `stop`."""
        result = []
        for (_, before), (name, after) in zip(self._marks, self._marks[1:], strict=False):
            if isinstance(before, int) and isinstance(after, int):
                result.append((name, after - before))
            elif isinstance(before, torch.cuda.Event) and isinstance(after, torch.cuda.Event):
                result.append((name, int(before.elapsed_time(after) * 1e6)))
        return result


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def lap_cost_ns(device: torch.device, num_laps: int = 2000) -> float:
    """What one `lap` costs on the host."""
    watch = Stopwatch(device)
    watch.start()
    begin = time.perf_counter_ns()
    for _ in range(num_laps):
        watch.lap("probe")
    return (time.perf_counter_ns() - begin) / num_laps


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
