"""A stopwatch that splits time into named spans on CPU and GPU, and the cost of reading it."""

from __future__ import annotations

import time

import torch


class Stopwatch:
    """Times consecutive named spans: host time on a CPU, events on a GPU, no synchronisation."""

    def __init__(self, device: torch.device, enabled: bool = True):
        self._device, self._enabled = device, enabled
        self._cuda = device.type == "cuda"
        self._marks: list[tuple[str, int | torch.cuda.Event]] = []
        self._begin = 0

    def start(self) -> None:
        """Wait for the device, then start the first span."""
        synchronize(self._device)
        self._marks = []
        self._begin = time.perf_counter_ns()
        self.lap("")

    def lap(self, name: str) -> None:
        """End the current span, call it `name`, and start the next one."""
        if not self._enabled:
            return
        if self._cuda:
            event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            event.record()
            self._marks.append((name, event))
        else:
            self._marks.append((name, time.perf_counter_ns()))

    def stop(self) -> int:
        """Wait for the device. Returns nanoseconds since `start`, 0 if disabled."""
        synchronize(self._device)
        return time.perf_counter_ns() - self._begin if self._enabled else 0

    def spans(self) -> list[tuple[str, int]]:
        """Name and nanoseconds of each span in order; valid after `stop`."""
        result = []
        for (_, before), (name, after) in zip(self._marks, self._marks[1:], strict=False):
            if isinstance(before, int) and isinstance(after, int):
                result.append((name, after - before))
            elif isinstance(before, torch.cuda.Event) and isinstance(after, torch.cuda.Event):
                result.append((name, int(before.elapsed_time(after) * 1e6)))
        return result


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished all work submitted to it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def lap_cost_ns(device: torch.device, num_laps: int = 2000) -> float:
    """Host nanoseconds that one `Stopwatch.lap` takes, averaged over `num_laps`."""
    watch = Stopwatch(device)
    watch.start()
    begin = time.perf_counter_ns()
    for _ in range(num_laps):
        watch.lap("probe")
    return (time.perf_counter_ns() - begin) / num_laps
