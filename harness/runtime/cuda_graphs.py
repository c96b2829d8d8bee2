"""A function of tensors as CUDA graphs: part of a round becomes one launch, and the host can run ahead.

An eager forward consists of hundreds of launches of a few microseconds each, and a compiled one still checks
its guards before every call; a graph does neither.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

_NUM_WARMUP = 2
"""Runs before a capture, because the compilation and tuning of a first call cannot be captured."""


def can_capture(device: torch.device) -> bool:
    """Whether work on this device can be captured."""
    return device.type == "cuda"


class Captured:
    """A function that is captured anew for every set of shapes and constants.

    The function takes tensors, then constants, and must not wait for the device. It is run a few times before
    it is captured. Where those runs must not change memory (caches), `tame` turns the first inputs into
    harmless ones.
    The outputs lie where the next call with the same shapes and constants will write: use them before, or
    copy them.
    """

    problem: str | None = None
    """Always None: a capture that fails raises."""

    def __init__(
        self, function: Callable[..., Any], tame: Callable[..., Sequence[Tensor]] | None = None
    ) -> None:
        self._function, self._tame = function, tame
        self._graphs: dict[Hashable, Graph] = {}

    def __call__(self, *tensors: Tensor, constants: Sequence[Hashable] = (), where: Hashable = None) -> Any:
        """The function's output. where: names the other memory that it reads; other memory, another graph."""
        shapes = tuple((tensor.shape, tensor.dtype) for tensor in tensors)
        key = (shapes, tuple(constants), where)
        if key not in self._graphs:
            first = self._tame(*tensors) if self._tame else tensors
            self._graphs[key] = Graph(lambda *inputs: self._function(*inputs, *constants), first)
        return self._graphs[key].replay(tensors)

    @property
    def num_graphs(self) -> int:
        """The number of graphs captured so far."""
        return len(self._graphs)


class Graph:
    """One capture with its own input buffers, to which inputs are copied."""

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
        """Run the graph on these inputs and return the function's output."""
        for place, tensor in zip(self._inputs, inputs, strict=True):
            if place.numel():
                place.copy_(tensor, non_blocking=True)
        with torch.cuda.device(self._inputs[0].device):
            self._graph.replay()
        return self._outputs
