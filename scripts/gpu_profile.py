"""Time outside kernels on a CUDA device: python scripts/gpu_profile.py [key=value ...], as harness.bench.

Decodes one warm-up prompt with vanilla and every other arm, to two lengths; the differences are of rounds
alone, without the prompt. Prints, per arm: milliseconds of a round by the clock, those that kernels take
(torch's profiler, in a run of its own, as it slows the host), the share of the clock outside kernels, kernels
a round, and the kernels that take most.
"""

from __future__ import annotations

import statistics
import sys
from collections import Counter
from typing import Any

import torch
from hydra import compose, initialize_config_module
from torch.profiler import ProfilerActivity, profile

from harness.benchmark.plan import make_plan
from harness.benchmark.session import Session
from harness.decoding.batch import Request
from harness.decoding.loop import LocalEngine
from harness.decoding.sampling import DecodingParams
from harness.drafting.drafter import Drafter
from harness.system.console import Console
from harness.tasks.conversation import Message

NUM_TOKENS = (32, 160)
NUM_REPEATS = 5
NUM_SHOWN = 12


def kernels(call: Any) -> tuple[Counter[str], Counter[str]]:
    """Microseconds and numbers of a call's kernels (and copies), by name."""
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        call()
        torch.cuda.synchronize()
    spent, number = Counter[str](), Counter[str]()
    for event in seen.events():
        if event.device_type == torch.autograd.DeviceType.CUDA:
            spent[event.name] += event.time_range.elapsed_us()
            number[event.name] += 1
    return spent, number


def show(session: Session, name: str, drafter: Drafter) -> None:
    """Print the lines of an arm."""
    conversation = session.plan.task.warmup()[0]
    prompt = session.render([Message(role="user", content=conversation.turns[0])])
    batch = session.plan.measure.batch_size
    requests = [Request(prompt=prompt, key=key) for key in range(batch)]
    loop = LocalEngine(session.plan.engine.reference, (), session.model.max_context)
    rounds, clock, spent, number = [], [], [], []
    for count in NUM_TOKENS:
        params = DecodingParams(name="greedy", max_new_tokens=count, ignore_end_token=True)

        def call(params: DecodingParams = params) -> Any:
            return loop.generate(requests, drafter, params, session.plan.acceptor)

        call()
        made = [call() for _ in range(NUM_REPEATS)]
        clock.append(statistics.median(sum(one.total_ns for one in run) for run in made) * 1e-6)
        rounds.append(max(len(one.emitted) for one in made[0]))
        for known, new in zip((spent, number), kernels(call), strict=True):
            known.append(new)
    num_rounds = rounds[1] - rounds[0]
    wall = (clock[1] - clock[0]) / num_rounds
    spent[1].subtract(spent[0])
    number[1].subtract(number[0])
    busy = sum(spent[1].values()) / num_rounds / 1000
    num_kernels = sum(number[1].values()) / num_rounds
    print(
        f"{name}, batch {batch}: round {wall:.3f} ms, kernels {busy:.3f} ms ({num_kernels:.0f} a round),"
        f" outside kernels {1 - busy / wall:.1%}"
    )
    for kernel, micros in spent[1].most_common(NUM_SHOWN):
        print(f"  {micros / num_rounds:9.1f} us {number[1][kernel] / num_rounds:6.1f} x  {kernel[:100]}")


@torch.no_grad()
def main(overrides: list[str]) -> None:
    """Print the lines of all arms."""
    with initialize_config_module("conf", version_base="1.3"):
        config = compose("bench", overrides=["~experiment", "tracker=none", *overrides])
    session = Session(make_plan(config, []), Console())
    for name, drafter in session.plan.arms.items():
        show(session, name, drafter)


if __name__ == "__main__":
    main(sys.argv[1:])
