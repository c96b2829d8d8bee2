"""Milliseconds of SmolLM2's LM head and forward by rows, plain and packed: python scripts/linear_cost.py"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from harness.profiling.step_timing import time_steps
from harness.runtime.packed_linear import Product
from harness.system.probes import read_bandwidth
from harness.target.model import Target
from harness.target.smollm2 import WheelTarget

ROWS = (1, 2, 3, 4, 5, 9, 16, 21, 60)


def least_ms(layer: Callable[[torch.Tensor], object], rows: torch.Tensor, num_repeats: int = 9) -> float:
    """Of several calls."""
    times = []
    for _ in range(num_repeats):
        begin = time.perf_counter()
        layer(rows)
        times.append(time.perf_counter() - begin)
    return 1000 * min(times)


@torch.no_grad()
def main() -> None:
    """Print a line each."""
    loaded = WheelTarget().load(print)
    head = loaded.model.get_output_embeddings()
    inputs = {count: torch.randn(count, head.in_features) for count in ROWS}
    print("rows", ROWS)
    for name, layer in (("plain", head), ("packed", Product([head]).multiply)):
        print("LM head", name, [round(least_ms(layer, rows), 1) for rows in inputs.values()])
    for linear in ("plain", "packed"):
        found = time_steps(
            Target(loaded.model, linear=linear), 1, [count - 1 for count in ROWS], num_repeats=5
        )
        print("forward", linear, [round(found.verify_ns[count - 1] / 1e6) for count in ROWS])
    print(
        f"reading a step's bytes {1000 * loaded.card['step_bytes'] / read_bandwidth(torch.device('cpu')):.1f}"
    )


if __name__ == "__main__":
    main()
