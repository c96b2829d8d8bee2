"""When requests are sent: as fast as a number of places allows, or as they come at a rate."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

Answer = TypeVar("Answer")
Ask = Callable[[int, int], Awaitable[Answer]]
"""Takes the number of a request, and the monotonic time in nanoseconds from which its latency counts."""


def poisson_offsets_ns(number: int, rate: float, seed: str) -> list[int]:
    """When each of `number` requests is due, in nanoseconds after the first moment, in order.

    rate: requests per second on average; the gaps are exponential, so that arrivals are a Poisson process.
    """
    generator, at = random.Random(seed), 0.0
    offsets = []
    for _ in range(number):
        at += generator.expovariate(rate)
        offsets.append(round(at * 1e9))
    return offsets


async def closed_loop(ask: Ask[Answer], order: Sequence[int], places: int) -> list[Answer]:
    """Keep `places` requests running, in this order, until all are answered; answers by number.

    The first exception cancels the others.
    """
    waiting, answers = iter(order), dict[int, Answer]()

    async def place() -> None:
        for number in waiting:
            answers[number] = await ask(number, time.perf_counter_ns())

    async with asyncio.TaskGroup() as group:
        for _ in range(min(places, len(order))):
            group.create_task(place())
    return [answers[number] for number in sorted(answers)]


async def open_loop(
    ask: Ask[Answer], order: Sequence[int], offsets_ns: Sequence[int], places: int | None
) -> list[Answer]:
    """Send a request whenever one is due, whether or not earlier ones are answered; answers by number.

    offsets_ns: when each is due. places: the most that run together; later ones wait, which counts as
    latency. None: no limit.
    """
    begin = time.perf_counter_ns()
    free = asyncio.Semaphore(places or len(order))

    async def one(number: int, due_ns: int) -> Answer:
        await asyncio.sleep(max(due_ns - time.perf_counter_ns(), 0) * 1e-9)
        async with free:
            return await ask(number, due_ns)

    async with asyncio.TaskGroup() as group:
        tasks = {
            number: group.create_task(one(number, begin + offset))
            for number, offset in zip(order, offsets_ns, strict=True)
        }
    return [tasks[number].result() for number in sorted(tasks)]
