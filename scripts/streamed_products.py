"""The matrix products of one step, streamed from memory: python scripts/streamed_products.py

SmolLM2-135M's shapes, float32. Milliseconds (median of 11) for several numbers of rows of: a plain sum over
the same bytes (the roof), torch's own products, one packed product a layer, one for all layers that read the
same input; and loops over the weights as a compiled step makes them, a compiled function a block.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from statistics import median

import torch
from torch import Tensor, nn

from harness.runtime.packed_linear import Product, streamed

NUM_LAYERS, HIDDEN, INNER, KEYS, VOCABULARY = 30, 576, 1536, 192, 49152
ROWS = (1, 2, 6, 16, 60)
NUM_REPEATS = 11


def clocked(call: Callable[[], object]) -> float:
    """Milliseconds."""
    begin = time.perf_counter()
    call()
    return (time.perf_counter() - begin) * 1000


Calls = Sequence[tuple[Callable[[Tensor], object], int]]


def show(name: str, calls: Calls, rows: Sequence[int] = ROWS) -> None:
    """One line: all calls in turn, each with rows of its own width."""
    told = []
    for count in rows:
        given = {size: torch.randn(count, size) for size in (HIDDEN, INNER)}
        spent = [
            clocked(lambda given=given: [call(given[size]) for call, size in calls])
            for _ in range(NUM_REPEATS)
        ]
        told.append(f"{count}: {median(spent):.1f}")
    print(f"{name}: {', '.join(told)}", flush=True)


def block(rows: Tensor, inner: Tensor, weights: Sequence[Tensor]) -> list[Tensor]:
    """Products of the layers of one block, each with rows of its own width."""
    return [streamed(inner if weight.shape[1] == INNER else rows, weight) for weight in weights]


def show_loops(layers: Sequence[nn.Linear], count: int) -> None:
    """One line: block after block as a compiled function."""
    weights = [layer.weight for layer in layers]
    size = (len(weights) - 1) // NUM_LAYERS
    blocks = [weights[begin : begin + size] for begin in range(0, len(weights), size)]
    compiled = torch.compile(block, fullgraph=True, dynamic=False)
    rows, inner = torch.randn(count, HIDDEN), torch.randn(count, INNER)
    spent = [clocked(lambda: [compiled(rows, inner, one) for one in blocks]) for _ in range(NUM_REPEATS + 1)]
    print(f"loops: {count}: {median(spent[1:]):.1f}", flush=True)


@torch.no_grad()
def main() -> None:
    """Print a line each."""
    groups = []
    for _ in range(NUM_LAYERS):
        groups.append([linear(HIDDEN, size) for size in (HIDDEN, KEYS, KEYS)])
        groups.append([linear(HIDDEN, HIDDEN)])
        groups.append([linear(HIDDEN, INNER), linear(HIDDEN, INNER)])
        groups.append([linear(INNER, HIDDEN)])
    groups.append([linear(HIDDEN, VOCABULARY)])
    layers = [layer for group in groups for layer in group]
    show("sum", [(lambda _, layer=layer: layer.weight.sum(), HIDDEN) for layer in layers], rows=(1,))
    show("torch", [(layer, layer.in_features) for layer in layers])
    alone = [Product([layer]) for layer in layers]
    show("packed", [(one.multiply, layer.in_features) for one, layer in zip(alone, layers, strict=True)])
    joined = [Product(group) for group in groups]
    show("joined", [(one.multiply, group[0].in_features) for one, group in zip(joined, groups, strict=True)])
    for count in (1, 2, 6):
        show_loops(layers, count)


def linear(num_inputs: int, num_outputs: int) -> nn.Linear:
    """A layer without a bias."""
    return nn.Linear(num_inputs, num_outputs, bias=False)


if __name__ == "__main__":
    main()
