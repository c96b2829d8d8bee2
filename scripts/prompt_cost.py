"""Prompts of SmolLM2 on this CPU, alone and together: python scripts/prompt_cost.py

Seconds (median of 7, in turns) of eight prompts of 49 to 86 tokens, as long as those of the smoke split, one
by one and in groups; and how many products a second one prompt makes, beside those of a square product.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

import torch

from harness.target.model import Target
from harness.target.prefill import groups
from harness.target.smollm2 import WheelTarget

LENGTHS = sorted([79, 58, 56, 49, 76, 86, 65, 76])
ALONE = (32, 64, 128, 256)
SIDE = 1024
NUM_REPEATS = 7


def clocked(call: Callable[[], object]) -> float:
    """Seconds of a call."""
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def prompt(length: int) -> list[int]:
    """Any tokens."""
    return [1 + place for place in range(length)]


@torch.no_grad()
def main() -> None:
    """Print a line each."""
    target = Target(WheelTarget().load(print).model, linear="auto")
    given = [prompt(length) for length in LENGTHS]
    target.begin(len(given))
    calls = {
        together: lambda together=together: target.prefill(range(len(given)), given, together)
        for together in (False, True)
    }
    spent: dict[bool, list[float]] = {together: [] for together in calls}
    for repeat in range(NUM_REPEATS + 1):
        for together, call in calls.items():
            seconds = clocked(call)
            if repeat:
                spent[together].append(seconds)
    parts = [part.stop - part.start for part in groups(range(len(given)), LENGTHS)]
    alone, grouped = (median(spent[together]) for together in calls)
    print(f"{LENGTHS} tokens: one by one {alone:.3f} s, in groups of {parts} {grouped:.3f} s")
    blocks = target.model.get_decoder().layers
    weights = sum(weight.numel() for weight in blocks.parameters() if weight.ndim == 2)
    square = torch.randn(SIDE, SIDE)
    product = median(clocked(lambda: square @ square) for _ in range(NUM_REPEATS))
    print(f"a product of {SIDE} rows and columns: {2 * SIDE**3 / product / 1e9:.0f} GFLOP/s")
    for length in ALONE:
        one = [prompt(length)]
        seconds = median(clocked(lambda one=one: target.prefill([0], one)) for _ in range(NUM_REPEATS))
        print(f"{length} tokens: {seconds * 1000:.0f} ms, {2 * weights * length / seconds / 1e9:.0f} GFLOP/s")


if __name__ == "__main__":
    main()
