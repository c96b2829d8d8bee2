"""Matrix products and prompts: `python -m harness.cost linear` and `python -m harness.cost prompts`."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from harness.profiling.setup import Finding, ProfilingSetup
from harness.profiling.step_timing import time_steps
from harness.runtime.packed_linear import Product, kernel_problem, layout, pack
from harness.system.clock import synchronize
from harness.system.probes import read_bandwidth
from harness.target.model import Target
from harness.target.prefill import groups

_PROMPT_LENGTHS = (49, 56, 58, 65, 76, 76, 79, 86)
"""The lengths of the prompts of task=smoke for SmolLM2."""
_SIDE = 1024
"""Rows and columns of the square product that prompts are compared with."""


@torch.no_grad()
def linear(setup: ProfilingSetup) -> list[Finding]:
    """Time the products of one step's linear layers by number of rows, and whole forwards of the target.

    The ways to multiply: torch's own layers, and the layout that this device allows (`packed` or `joined`,
    see `harness.runtime.packed_linear`); beside them a plain sum over the same weights and the time that
    reading them takes at the machine's bandwidth. Milliseconds per number of tokens in `costs.tokens`.
    """
    model, rows = setup.target.model, setup.profile.tokens
    layers = [layer for layer in model.modules() if type(layer) is nn.Linear]
    num_bytes = sum(layer.weight.nbytes for layer in layers)
    sums = median(_seconds(setup, lambda: [layer.weight.sum() for layer in layers]))
    reading = num_bytes / read_bandwidth(setup.target.device)
    found: list[Finding] = [{"what": "layers", "linear": "sum", "ms": {"1": sums * 1000}}]
    found.append({"what": "layers", "linear": "bandwidth", "ms": {"1": reading * 1000}})
    found.append(_layers(setup, "plain", [(layer, layer.in_features) for layer in layers]))
    found.append(_forwards("plain", setup.target, rows))
    other = layout(model)
    if other == "packed" and kernel_problem() is None:
        alone = [(Product([layer], "kernel").multiply, layer.in_features) for layer in layers]
        found.append(_layers(setup, "kernel", alone))
    if other != "plain":
        replaced = pack(model)
        products: dict[Product, int] = {one.product: one.in_features for one in replaced}
        calls = [(product.multiply, size) for product, size in products.items()]
        found.append(_layers(setup, other, [*calls, *_left(model)]))
        found.append(_forwards(other, setup.target, rows))
    for line in found:
        shown = ", ".join(f"{count}: {spent:.2f}" for count, spent in line["ms"].items())
        setup.note(f"{line['what']}, {line['linear']}: {shown} ms")
    return found


def _left(model: nn.Module) -> list[tuple[Callable[[Tensor], object], int]]:
    """The layers that share a product with no other one, where only those are replaced that do."""
    return [(layer, layer.in_features) for layer in model.modules() if type(layer) is nn.Linear]


def _layers(
    setup: ProfilingSetup, name: str, calls: Sequence[tuple[Callable[[Tensor], object], int]]
) -> Finding:
    """Milliseconds of all calls, one after another, by number of rows."""
    spent = {}
    for count in setup.profile.tokens:
        given = {
            size: torch.randn(count, size, dtype=setup.target.dtype, device=setup.target.device)
            for size in {size for _, size in calls}
        }
        pairs = [(call, given[size]) for call, size in calls]
        spent[str(count)] = median(_seconds(setup, partial(_call_all, pairs))) * 1000
    return {"what": "layers", "linear": name, "ms": spent}


def _call_all(pairs: Sequence[tuple[Callable[[Tensor], object], Tensor]]) -> None:
    for call, rows in pairs:
        call(rows)


def _forwards(name: str, target: Target, rows: Sequence[int]) -> Finding:
    timings = time_steps(target, 1, [count - 1 for count in rows], num_context=min(128, rows[-1]))
    return {
        "what": "forward",
        "linear": name,
        "ms": {str(count): timings.verify_ns[count - 1] * 1e-6 for count in rows},
    }


@torch.no_grad()
def prompts(setup: ProfilingSetup) -> list[Finding]:
    """Time eight short prompts one by one and in groups, and the rate of products in single prompts.

    One finding for the eight, in seconds; one for a square product and one per length in `costs.contexts`, in
    billions of multiplications and additions per second.
    """
    target, profile = setup.target, setup.profile
    given = [profile.ids(length, target.vocab_size, "prompt") for length in _PROMPT_LENGTHS]
    rows = range(len(given))
    target.begin(len(given))
    alone, grouped = (
        median(_seconds(setup, partial(target.prefill, rows, given, together))) for together in (False, True)
    )
    sizes = [part.stop - part.start for part in groups(rows, _PROMPT_LENGTHS)]
    found: list[Finding] = [
        {"lengths": list(_PROMPT_LENGTHS), "one_by_one_s": alone, "grouped_s": grouped, "groups": sizes}
    ]
    setup.note(
        f"prompts of {_PROMPT_LENGTHS} tokens: one by one {alone:.3f} s, in groups {sizes} {grouped:.3f} s"
    )
    square = torch.randn(_SIDE, _SIDE, dtype=target.dtype, device=target.device)
    seconds = median(_seconds(setup, lambda: square @ square))
    found.append({"square": _SIDE, "gflops": 2 * _SIDE**3 / seconds * 1e-9})
    setup.note(f"a product of {_SIDE} rows and columns: {found[-1]['gflops']:.0f} GFLOP/s")
    blocks = target.model.get_decoder().layers
    num_weights = sum(weight.numel() for weight in blocks.parameters() if weight.ndim == 2)
    for length in profile.contexts:
        one = [profile.ids(length, target.vocab_size, "prompt")]
        seconds = median(_seconds(setup, partial(target.prefill, [0], one)))
        rate = 2 * num_weights * length / seconds * 1e-9
        found.append({"length": length, "prompt_s": seconds, "gflops": rate})
        setup.note(f"a prompt of {length} tokens: {seconds * 1000:.0f} ms, {rate:.0f} GFLOP/s")
    return found


def _seconds(setup: ProfilingSetup, call: Callable[[], Any]) -> list[float]:
    """Seconds of the profile's repeats of a call, after one warm-up at least."""
    spent = []
    for repeat in range(max(1, setup.profile.num_warmup) + setup.profile.num_repeats):
        synchronize(setup.target.device)
        begin = time.perf_counter()
        call()
        synchronize(setup.target.device)
        if repeat >= max(1, setup.profile.num_warmup):
            spent.append(time.perf_counter() - begin)
    return spent
