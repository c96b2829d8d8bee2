"""A step over new tokens as one compiled program: torch.compile, the whole of it or nothing.

Compiled layer by layer, the recompile limit is met silently and the other layers stay as they are; so the
graph is whole, and meeting the limit fails. Compiling takes minutes the first time; inductor keeps what it
made on disk, so that the next process needs a fraction.
On a CPU, sizes that change from round to round (drafted tokens, slots of the cache) are symbols: there is one
program for one token and one for several, by batch. On CUDA every width has its own, captured as a graph.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor

from harness.cache import SlotCache
from harness.config import ConfigError

_MOST_PROGRAMS = 64
"""Of one step: widths times batch sizes times slots of the cache."""
Axes = Sequence[Sequence[int]]


class Program:
    """A step that is compiled when it is called with sizes of a new kind: one token, several, another batch.

    num_rows: how many sequences it serves; None is any number. by_shape: every number of tokens, sequences
    and slots is a program of its own.
    """

    def __init__(self, step: Callable[..., Any], axes: Axes, device: torch.device) -> None:
        """
        step: a method that takes tensors, then perhaps a cache, aimed at all its slots, then strings or
        numbers, and gives a tensor or several. Its modules must not change: they are not looked at again.
        axes: of each of the tensors, those that change from round to round.

        Raises:
            ConfigError: there is nothing to compile with.
        """
        if device.type == "cpu" and not any(map(shutil.which, ("g++", "clang++"))):
            raise ConfigError(
                "target.compile=true: on a CPU needs a C++ compiler (g++, clang++); type target.compile=false"
            )
        torch._dynamo.config.fail_on_recompile_limit_hit = True
        torch._dynamo.config.recompile_limit = _MOST_PROGRAMS
        self.by_shape = device.type != "cpu"
        self.num_rows: int | None = None
        self._axes = axes
        self._compiled = torch.compile(
            _alone(step),
            fullgraph=True,
            dynamic=False if self.by_shape else None,
            options={"triton.cudagraphs": self.by_shape, "guard_filter_fn": _outside},
        )

    def serves(self, num_rows: int) -> bool:
        """Whether a batch of so many sequences is compiled for."""
        return self.num_rows in (None, num_rows)

    @torch.no_grad()
    def __call__(
        self, *tensors: Tensor, cache: SlotCache | None = None, constants: Sequence[str | int] = ()
    ) -> Any:
        """What the step gives."""
        if self.by_shape:
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        else:
            for tensor, axes in zip(tensors, self._axes, strict=True):
                for axis in axes:
                    if tensor.shape[axis] > 1:
                        torch._dynamo.mark_dynamic(tensor, axis)
        caches = [] if cache is None else [cache]
        for one in caches:
            one.mark(dynamic=not self.by_shape)
        made = self._compiled(*tensors, *caches, *constants)
        if not self.by_shape:
            return made
        # A captured graph writes to the same place every time.
        return made.clone() if isinstance(made, Tensor) else tuple(part.clone() for part in made)


def num_programs() -> int:
    """That torch.compile has made in this process."""
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


def _alone(step: Callable[..., Any]) -> Callable[..., Any]:
    """The same method with code of its own: programs are kept by code, and those of another object must not
    be taken for this one's."""
    function: Any = step.__func__  # type: ignore[attr-defined]
    copy = FunctionType(
        function.__code__.replace(),
        function.__globals__,
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    return MethodType(copy, step.__self__)  # type: ignore[attr-defined]


def _outside(guards: Sequence[Any]) -> list[bool]:
    """Which conditions are looked at before every call: not the thousands on the insides of modules, which
    take longer than some layers."""
    return ["_modules" not in guard.name for guard in guards]
