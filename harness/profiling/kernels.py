"""Time inside and outside of kernels: `python -m harness.cost kernels`."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from harness.config import ConfigError
from harness.decoding.batch import Generation
from harness.drafting.drafter import Drafter
from harness.profiling.setup import Finding, ProfilingSetup

_NUM_REPEATS = 5
_NUM_SHOWN = 12


KernelTimes = Callable[[Callable[[], object]], tuple[Counter[str], Counter[str]]]
"""Calls a function; returns microseconds and number of the kernels that it ran, by name."""


def kernels(setup: ProfilingSetup) -> list[Finding]:
    """Time rounds by the clock, and their kernels by torch's profiler; needs a CUDA device.

    One finding per drafter and batch: milliseconds of a round and of its kernels, the share of the round
    outside of kernels, kernels per round, and those that take most.

    Raises:
        ConfigError: the target is on a CPU.
    """
    if setup.target.device.type != "cuda":
        raise ConfigError(
            f"command=kernels: needs a CUDA device, the target is on {setup.target.device}; type"
            " target.device=cuda, or python -m harness.cost split"
        )
    found = []
    for name, drafter in setup.some_drafters().items():
        for batch in setup.profile.batches:
            setup.profile.choose_steps(setup.target, batch)
            line = per_round(setup, drafter, batch)
            found.append({"drafter": name, "batch": batch, **line})
            setup.note(
                f"{name}, batch {batch}: round {line['round_ms']:.3f} ms, kernels {line['kernels_ms']:.3f} ms"
                f" ({line['kernels_per_round']:.0f} per round), outside of kernels {line['outside']:.1%}"
            )
            for most in line["most"]:
                setup.note(f"  {most['us']:9.1f} us {most['number']:6.1f} x  {most['name'][:100]}")
    return found


def per_round(
    setup: ProfilingSetup, drafter: Drafter, batch: int, kernel_times: KernelTimes | None = None
) -> Finding:
    """The clock and the kernels of a round: a long generation less a short one, over the rounds between them.

    The difference leaves out the prompt. The profiler runs in generations of its own, as it slows the host.
    """
    whole = setup.profile.num_new_tokens
    clock: list[float] = []
    rounds: list[int] = []
    seen: list[tuple[Counter[str], Counter[str]]] = []
    for count in (max(1, whole // 5), whole):

        def call(count: int = count) -> list[Generation]:
            requests, params = setup.requests(batch), setup.params(count)
            return setup.engine.generate(requests, drafter, params, setup.acceptor)

        call()
        made = [call() for _ in range(_NUM_REPEATS)]
        clock.append(statistics.median(sum(one.total_ns for one in run) for run in made) * 1e-6)
        rounds.append(max(len(one.emitted) for one in made[0]))
        seen.append((kernel_times or cuda_kernel_times)(call))
    num_rounds = rounds[1] - rounds[0]
    wall = (clock[1] - clock[0]) / num_rounds
    (spent, number), (short_spent, short_number) = seen[1], seen[0]
    spent.subtract(short_spent)
    number.subtract(short_number)
    busy = sum(spent.values()) / num_rounds / 1000
    return {
        "round_ms": wall,
        "kernels_ms": busy,
        "outside": 1 - busy / wall,
        "kernels_per_round": sum(number.values()) / num_rounds,
        "most": [
            {"name": kernel, "us": micros / num_rounds, "number": number[kernel] / num_rounds}
            for kernel, micros in spent.most_common(_NUM_SHOWN)
        ],
    }


def cuda_kernel_times(call: Callable[[], object]) -> tuple[Counter[str], Counter[str]]:
    """Microseconds and number of the kernels and copies that a call runs on CUDA devices, by name."""
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        call()
        torch.cuda.synchronize()
    spent, number = Counter[str](), Counter[str]()
    events: Any = seen.events()
    for event in events:
        if event.device_type.name == "CUDA":
            spent[event.name] += event.time_range.elapsed_us()
            number[event.name] += 1
    return spent, number
