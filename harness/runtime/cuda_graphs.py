"""A function of tensors as CUDA graphs: a part of a round is one launch, and the host can run ahead.

Eager, a forward is hundreds of launches of a few microseconds, and a compiled one still looks at its
conditions before every call; a graph does neither.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

_NUM_WARMUP = 2
"""Runs before a capture: what is compiled or tuned the first time cannot be captured."""


def can_capture(device: torch.device) -> bool:
    """Whether work on this device can be captured."""
    return device.type == "cuda"


class Captured:
    """Captures anew for every set of shapes and constants.

    The function takes tensors, then constants, and must not ask the host for anything. It is run a few times
    before it is captured; `tame` makes inputs for that out of the first ones, where what it writes to memory
    (caches) must not be written twice.
    What it gives lies where the next call with the same shapes and constants will write: use it before, or
    copy it.
    """

    def __init__(
        self, function: Callable[..., Any], tame: Callable[..., Sequence[Tensor]] | None = None
    ) -> None:
        self._function, self._tame = function, tame
        self._graphs: dict[Hashable, Graph] = {}

    def __call__(self, *tensors: Tensor, constants: Sequence[Hashable] = (), where: Hashable = None) -> Any:
        """What the function gives. where: of what else it reads; elsewhere it is another graph."""
        shapes = tuple((tensor.shape, tensor.dtype) for tensor in tensors)
        key = (shapes, tuple(constants), where)
        if key not in self._graphs:
            first = self._tame(*tensors) if self._tame else tensors
            self._graphs[key] = Graph(lambda *inputs: self._function(*inputs, *constants), first)
        return self._graphs[key].replay(tensors)

    @property
    def num_graphs(self) -> int:
        """Captured so far."""
        return len(self._graphs)


class Graph:
    """One capture: inputs are copied to where it reads."""

    def __init__(self, function: Callable[..., Any], inputs: Sequence[Tensor]) -> None:
        self._inputs = [tensor.clone() for tensor in inputs]
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(inputs[0].device):
            side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            here = torch.cuda.current_stream()
            side.wait_stream(here)
            with torch.cuda.stream(side):
                for _ in range(_NUM_WARMUP):
                    function(*self._inputs)
            here.wait_stream(side)
            with torch.cuda.graph(self._graph):
                self._outputs = function(*self._inputs)

    def replay(self, inputs: Sequence[Tensor]) -> Any:
        """What the function gave."""
        for place, tensor in zip(self._inputs, inputs, strict=True):
            if place.numel():
                place.copy_(tensor, non_blocking=True)
        with torch.cuda.device(self._inputs[0].device):
            self._graph.replay()
        return self._outputs
