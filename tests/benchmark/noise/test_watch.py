"""The watch over a run, with injected counters: what a block's load says, and how long it waits for quiet."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from harness.benchmark.noise.watch import MAX_TOTAL_WAIT_S, MAX_WAIT_S, LoadWatch
from harness.system.console import Console
from harness.system.load.counters import Counters
from harness.system.load.disturbance import Machine
from harness.system.load.gpu import GpuState


@dataclass
class World:
    """A machine of two cores whose clock only moves when somebody works or sleeps on it."""

    others: float = 0.0
    """Cores that others use."""
    counters: Counters = field(default_factory=lambda: Counters(*[0.0] * 8, None, 0))
    slept_s: list[float] = field(default_factory=list)

    def read(self) -> Counters:
        return self.counters

    def work(self, seconds: float, **more: float) -> None:
        """The run computes on both cores, and others take their part of them."""
        self._pass(seconds, own=2.0 - self.others, **more)

    def sleep(self, seconds: float) -> None:
        self.slept_s.append(seconds)
        self._pass(seconds, own=0.0)

    def _pass(self, seconds: float, own: float, **more: float) -> None:
        moved = {
            "wall_s": seconds,
            "own_s": own * seconds,
            "busy_s": (own + self.others) * seconds,
            "thread_s": own / 2 * seconds,
            **more,
        }
        self.counters = self.counters._replace(
            **{name: (getattr(self.counters, name) or 0) + step for name, step in moved.items()}
        )


def watch(world: World, quiet: Literal["warn", "wait", "off"] = "warn", **given: Any) -> LoadWatch:
    return LoadWatch(
        read=world.read,
        machine=Machine(num_cores=2, spare_cores=0, always_computes=True),
        quiet=quiet,
        console=Console(file=io.StringIO()),
        sleep=world.sleep,
        **given,
    )


def printed(watched: LoadWatch) -> str:
    file = watched.console.rich.file
    assert isinstance(file, io.StringIO)
    return file.getvalue()


def cycle(values: list[Any]) -> Callable[[], Any]:
    """A function that returns one value after the other, and the last one for ever."""
    return lambda: values.pop(0) if len(values) > 1 else values[0]


def test_a_quiet_block_has_figures_and_no_cause() -> None:
    world = World()
    watched = watch(world, read_speed=cycle([10e9, 9.5e9]))
    watched.begin("a")
    for _ in range(3):
        world.work(2.0)
        watched.after_pass()
    load = watched.end("a")
    assert (load.block, load.wall_s, load.own_share, load.others_share) == ("a", 6.0, 1.0, 0.0)
    assert load.bandwidth_loss == pytest.approx(0.05)
    assert (load.causes, load.void, load.stopped_s, load.suspended_s) == ({}, "", 0.0, 0.0)
    assert (load.throttled_share, load.gpu_others, load.gpu_sm_mhz) == (None, None, None)


def test_others_within_one_pass_are_found_although_the_mean_hides_them() -> None:
    world = World()
    watched = watch(world)
    watched.begin("a")
    for others in (0.0, 1.5, 0.0):
        world.others = others
        world.work(1.0 if others else 30.0)
        watched.after_pass()
    load = watched.end("a")
    assert load.causes == pytest.approx({"others": 0.75})
    assert load.worst_others_share == pytest.approx(0.75)
    assert load.others_share == pytest.approx(1.5 / 61 / 2)


def test_short_passes_are_judged_together() -> None:
    world = World()
    watched = watch(world)
    watched.begin("a")
    for number in range(40):
        # Two hundredths of a second that others took once: the tick of a counter.
        world.work(0.04, busy_s=2 * 0.04 + (0.02 if number == 7 else 0))
        watched.after_pass()
    assert watched.end("a").causes == {}


def test_a_stop_within_a_block_makes_it_void() -> None:
    world = World()
    watched = watch(world)
    watched.begin("a")
    world.work(3.0)
    world._pass(15.0, own=0.0, num_continued=1)
    watched.after_pass()
    load = watched.end("a")
    assert (load.stopped_s, load.num_stops) == (15.0, 1)
    assert load.void == "the process was stopped for 15.0 s and continued"
    watched.begin("b")
    world.work(3.0)
    watched.after_pass()
    assert watched.end("b").void == "", "the stop belongs to the block before"


def test_bandwidth_is_compared_with_the_best_of_the_run() -> None:
    world = World()
    watched = watch(world, read_speed=cycle([8e9, 10e9, 6e9, 9.9e9, 9.9e9]))
    losses = []
    for name in "abcd":
        watched.begin(name)
        world.work(2.0)
        watched.after_pass()
        losses.append(watched.end(name))
    assert [one.bandwidth_loss for one in losses] == pytest.approx([0.2, 0.4, 0.4, 0.01])
    assert [sorted(one.causes) for one in losses[1:]] == [["bandwidth"], ["bandwidth"], []]


def test_the_gpu_is_looked_at_behind_every_pass() -> None:
    world = World()
    states = [
        GpuState(0, 0.9, 300, ("heat",)),  # before the block
        GpuState(0, 0.0, 1980, ()),
        GpuState(1, 0.4, 1700, ("heat",)),
    ]
    watched = watch(world, gpu=cycle(states))
    watched.begin("a")
    for _ in range(2):
        world.work(2.0)
        watched.after_pass()
    load = watched.end("a")
    assert (load.gpu_others, load.gpu_others_share, load.gpu_sm_mhz) == (1, 0.4, (1700, 1980))
    assert (load.gpu_slowed_share, load.gpu_slowdowns) == (0.5, ("heat",))
    assert load.causes == {"gpu_others": 0.4, "gpu_slowed": 0.5}


def test_wait_ends_as_soon_as_the_machine_is_quiet_and_says_so() -> None:
    world = World(others=1.0)
    watched = watch(world, "wait")

    def sleep(seconds: float) -> None:
        world.sleep(seconds)
        world.others = 1.0 if len(world.slept_s) < 4 else 0.0

    watched.sleep = sleep
    watched.begin("a")
    # The fourth second was still busy, the fifth is quiet.
    assert len(world.slept_s) == 5
    assert "others use 50% of this machine; a waits" in printed(watched)
    assert "waited 4 s, and it is quiet" in printed(watched)
    world.work(3.0)
    assert watched.end("a").wall_s == 3.0, "waiting is not measured"


def test_wait_is_bounded_per_block_and_per_run() -> None:
    world = World(others=1.0)
    watched = watch(world, "wait")
    watched.begin("a")
    assert sum(world.slept_s) == MAX_WAIT_S
    assert "and it is not quiet yet" in printed(watched)
    for number in range(20):
        watched.begin(str(number))
    assert sum(world.slept_s) == MAX_TOTAL_WAIT_S


@pytest.mark.parametrize("quiet", ["warn", "off"])
def test_without_wait_nobody_sleeps(quiet: Literal["warn", "off"]) -> None:
    world = World(others=1.0)
    watched = watch(world, quiet)
    watched.begin("a")
    assert world.slept_s == []
