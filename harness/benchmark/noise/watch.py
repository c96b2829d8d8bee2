"""The watch over one run: reads the machine's counters between passes, and waits for a quiet machine."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from harness.benchmark.plan import Plan
from harness.store.records import BlockLoad
from harness.system.console import Console
from harness.system.load.counters import CounterReader, Counters, Usage, together, usage
from harness.system.load.disturbance import MIN_WINDOW_S, Machine, other_causes, others_cores
from harness.system.load.gpu import GpuState, gpu_watch
from harness.system.machine_lock import cores
from harness.system.probes import ShortProbe
from harness.system.processes import agreed, is_follower, num_processes

MAX_WAIT_S = 60.0
"""Seconds to wait for a quiet machine before one block (`measure.quiet=wait`)."""
MAX_TOTAL_WAIT_S = 600.0
"""Seconds to wait before all blocks of a run together: a machine that is never quiet must not stop it."""
_LOOK_S = 1.0


@dataclass(kw_only=True)
class LoadWatch:
    """Watches the machine during the blocks of one run.

    Call `begin` before a block, `after_pass` behind every pass, and `end` behind the last one. All three are
    outside of what the clock counts.
    """

    read: Callable[[], Counters]
    machine: Machine
    quiet: Literal["warn", "wait", "off"]
    console: Console
    refresh: Callable[[], None] = lambda: None
    """Looks up which processes are the run's own."""
    gpu: Callable[[], GpuState] | None = None
    read_speed: Callable[[], float] | None = None
    """A short probe of the read bandwidth, in bytes per second."""
    sleep: Callable[[float], None] = time.sleep
    _windows: list[Usage] = field(default_factory=list)
    _states: list[GpuState] = field(default_factory=list)
    _probes: list[float] = field(default_factory=list)
    _waited_s: float = 0.0

    def begin(self, block: str) -> None:
        """Wait for a quiet machine if that is wanted, then begin to watch a block."""
        self.refresh()
        if self.quiet == "wait" and self.machine.decodes_here and not is_follower():
            self._wait(block)
        if self.read_speed and not self._probes:
            self._probes.append(self.read_speed())
        self._windows, self._states = [], []
        if self.gpu:
            # The driver counts what others use from one look to the next.
            self.gpu()
        self._last = self.read()

    def after_pass(self) -> None:
        """Close a window, once it is long enough."""
        now = self.read()
        if now.wall_s - self._last.wall_s >= MIN_WINDOW_S:
            self._windows.append(usage(self._last, now))
            self._last = now
        if self.gpu:
            self._states.append(self.gpu())

    def end(self, block: str) -> BlockLoad:
        """The load of the block: in a run of several processes that of the first one, in all of them."""
        rest = usage(self._last, self.read())
        if self._windows and rest.wall_s < MIN_WINDOW_S:
            # Too short to be judged alone.
            self._windows[-1] = together([self._windows[-1], rest])
        else:
            self._windows.append(rest)
        if self.read_speed:
            self._probes.append(self.read_speed())
        return agreed(self._load(block))

    def _load(self, block: str) -> BlockLoad:
        whole = together(self._windows)
        loss = 1 - min(self._probes[-2:]) / max(self._probes) if self._probes else None
        gpu = self._of_gpu()
        elsewhere = {
            "bandwidth": loss,
            "gpu_others": gpu.get("gpu_others_share"),
            "gpu_slowed": gpu.get("gpu_slowed_share"),
        }
        return BlockLoad(
            block=block,
            wall_s=whole.wall_s,
            **(self._of_processors(whole) if self.machine.decodes_here else {}),
            stopped_s=self.machine.missing_s(self._windows),
            num_stops=whole.num_stops,
            suspended_s=whole.slept_s,
            bandwidth_loss=loss,
            **gpu,
            causes={**self.machine.taken(self._windows), **other_causes(elsewhere)},
            void=self.machine.stopped(self._windows),
        )

    def _of_processors(self, whole: Usage) -> dict[str, Any]:
        """The fields of `BlockLoad` about processor time."""
        wall_s, num_cores = max(whole.wall_s, 1e-9), self.machine.num_cores
        return {
            "own_share": whole.own_s / wall_s / num_cores,
            "others_share": whole.others_s / wall_s / num_cores,
            "worst_others_share": others_cores(self._windows) / num_cores,
            "steal_share": None if whole.stolen_s is None else whole.stolen_s / wall_s / num_cores,
            "throttled_share": None if whole.throttled_s is None else whole.throttled_s / wall_s,
        }

    def _of_gpu(self) -> dict[str, Any]:
        """The fields of `BlockLoad` about the GPU; none without one."""
        if not self._states:
            return {}
        shares = [one.others_share for one in self._states if one.others_share is not None]
        others = [one.num_others for one in self._states if one.num_others is not None]
        clocks = [one.sm_mhz for one in self._states if one.sm_mhz is not None]
        return {
            "gpu_others": max(others, default=None),
            "gpu_others_share": max(shares, default=None),
            "gpu_slowed_share": sum(bool(one.slowdowns) for one in self._states) / len(self._states),
            "gpu_slowdowns": tuple(sorted({name for one in self._states for name in one.slowdowns})),
            "gpu_sm_mhz": (min(clocks), max(clocks)) if clocks else None,
        }

    def _wait(self, block: str) -> None:
        """Wait, within `MAX_WAIT_S` and `MAX_TOTAL_WAIT_S`, until a second passes in which it is quiet."""
        most_s = min(MAX_WAIT_S, MAX_TOTAL_WAIT_S - self._waited_s)
        waited_s = 0.0
        while waited_s < most_s:
            before = self.read()
            self.sleep(_LOOK_S)
            window = usage(before, self.read())
            if self.machine.is_quiet(window) and not self._gpu_is_used():
                break
            if not waited_s:
                share = window.others_s / max(window.wall_s, 1e-9) / self.machine.num_cores
                self.console.note(
                    f"others use {share:.0%} of this machine; {block} waits for it to be quiet, for"
                    f" {most_s:.0f} s at most (measure.quiet=warn does not wait)"
                )
            waited_s += window.wall_s
        self._waited_s += waited_s
        if waited_s:
            ended = "and it is not quiet yet; measuring" if waited_s >= most_s else "and it is quiet"
            self.console.note(f"waited {waited_s:.0f} s, {ended}")

    def _gpu_is_used(self) -> bool:
        share = self.gpu().others_share if self.gpu else None
        return bool(other_causes({"gpu_others": share}))


def watch_of(plan: Plan, console: Console) -> LoadWatch | None:
    """The watch over a run of this plan; None where the clock does not count.

    Of an engine outside this process only stops of this process and of the machine are known: the processors
    here are not those that decode, or the process that decodes would count as somebody else.
    """
    if not plan.measure.timed:
        return None
    reader = CounterReader()
    if not plan.engine.in_process:
        machine = Machine(
            num_cores=reader.num_cores, spare_cores=0, decodes_here=False, always_computes=False
        )
        return LoadWatch(read=reader, machine=machine, quiet=plan.measure.quiet, console=console)
    device = plan.target.resolved_device()
    on_cpu = device.type == "cpu"
    busy = torch.get_num_threads() * num_processes() if on_cpu else num_processes()
    gpu = None
    if device.type == "cuda":
        gpu = gpu_watch(str(torch.cuda.get_device_properties(device).uuid), reader.family)
    return LoadWatch(
        read=reader,
        refresh=reader.refresh,
        machine=Machine(
            num_cores=reader.num_cores,
            spare_cores=max(len(cores()) - busy, 0),
            always_computes=on_cpu and num_processes() == 1,
        ),
        quiet=plan.measure.quiet,
        console=console,
        gpu=gpu,
        read_speed=ShortProbe(device, plan.measure.bandwidth_gib),
    )
