"""Cost: how long a forward over some tokens takes on this machine, and which shapes are worth padding to.

Matrix libraries are not monotone: on some CPUs three tokens cost more than five. A draft may be padded up to
a cheaper width, as its rectangle has a `size` of its own.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch

from harness.draft import Draft
from harness.measure import synchronize
from harness.target import Target

_MIN_GAIN = 0.05
"""Padding has to save this share of a forward: less is noise."""


@torch.no_grad()
def verify_ns(
    target: Target, num_rows: int, widest: int = 32, num_context: int = 128, num_repeats: int = 3
) -> list[int]:
    """Nanoseconds to verify `num_rows` chains of n tokens, for n = 0 .. widest; the least of several.

    Overwrites the target's cache.
    """
    target.begin(num_rows)
    for row in range(num_rows):
        target.prefill(row, [1 + i % (target.vocab_size - 1) for i in range(num_context)])
    pending = torch.ones(num_rows, dtype=torch.int64, device=target.device)
    least: list[int] = [1 << 62] * (widest + 1)
    for _ in range(num_repeats):
        for width in range(widest + 1):
            tokens = pending[:, None].expand(num_rows, width)
            draft = Draft.chain(tokens, torch.full_like(pending, width))
            synchronize(target.device)
            begin = time.perf_counter_ns()
            target.verify(pending, draft)
            synchronize(target.device)
            least[width] = min(least[width], time.perf_counter_ns() - begin)
    return least


def cheapest_widths(costs: Sequence[float]) -> list[int]:
    """For a draft of n nodes, the width at which its forward is cheapest; vanilla's 0 stays 0."""
    widths = [0][: len(costs)]
    for width in range(1, len(costs)):
        best = min(range(width, len(costs)), key=lambda other: costs[other])
        widths.append(best if costs[best] < (1 - _MIN_GAIN) * costs[width] else width)
    return widths
