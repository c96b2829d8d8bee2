"""A step over new tokens as a compiled program: torch.compile, the whole of it or nothing.

Where it breaks into pieces, the recompile limit is met silently and the other layers stay as they are; so the
graph is whole, and meeting the limit fails. Compiling takes minutes the first time; inductor keeps what it
made on disk, so that the next process needs a fraction. On CUDA a target is compiled block by block
(`harness.runtime.compiled_blocks`), which takes seconds.
Every number of new tokens is a program of its own, by batch. On a CPU there are few: only where the number
is known is a product of a few rows compiled to a loop over the weights; shorter drafts are padded. On CUDA
every number that is asked for has its own, to be captured as part of a graph (`harness.runtime.cuda_graphs`).
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor

from harness.config import ConfigError
from harness.runtime.cache import SlotCache
from harness.runtime.cuda_graphs import can_capture

_MOST_PROGRAMS = 64
"""Of one step: widths times batch sizes times slots of the cache."""
SIZES = (1, 8)
"""Numbers of new tokens that are compiled for on a CPU: eight cost little more than four, and a whole model
takes minutes for each."""
_SIZES_BY_SHAPE = (1, 2, 4, 8, 16, 32, 64)
"""And on CUDA, where others may be asked for; a prompt brings more."""


class Program:
    """A step that is compiled when it is called with another number of new tokens or of sequences.

    num_rows: how many sequences it serves; None is any number. sizes: numbers of new tokens that drafts
    should have. by_shape: every number of slots is a program of its own, too.
    """

    def __init__(
        self,
        step: Callable[..., Any],
        device: torch.device,
        sizes: Sequence[int] = SIZES,
        divided: bool = False,
    ) -> None:
        """
        step: a method that takes tensors [B, n, ...], then perhaps a mask [B, 1, n, C] and a cache, aimed at
        all its C slots, then strings or numbers, and gives a tensor or several. Its modules must not change:
        they are not looked at again. sizes: see the class; on a CPU. divided: parts of the step are compiled
        by themselves (see `harness.runtime.compiled_blocks`).

        Raises:
            ConfigError: there is nothing to compile with.
        """
        if device.type == "cpu" and not any(map(shutil.which, ("g++", "clang++"))):
            raise ConfigError(
                "target.compile=true: on a CPU needs a C++ compiler (g++, clang++); type target.compile=false"
            )
        torch._dynamo.config.fail_on_recompile_limit_hit = True
        torch._dynamo.config.recompile_limit = _MOST_PROGRAMS
        self.by_shape = can_capture(device)
        self.sizes = _SIZES_BY_SHAPE if self.by_shape else tuple(sizes)
        self.num_rows: int | None = None
        self._compiled = step
        if not divided:
            self._compiled = torch.compile(
                own_code(step), fullgraph=True, dynamic=False, options={"guard_filter_fn": outside}
            )

    def size_for(self, num_rows: int, num_new: int) -> int | None:
        """The number of new tokens to pad to, so that it is one that is compiled for; None: there is none."""
        if self.num_rows not in (None, num_rows):
            return None
        return next((size for size in self.sizes if size >= num_new), None)

    def serves(self, num_rows: int, num_new: int) -> bool:
        """Whether it is compiled for so many sequences and new tokens."""
        size = self.size_for(num_rows, num_new)
        return size == num_new or (self.by_shape and size is not None)

    @torch.no_grad()
    def __call__(
        self,
        *tensors: Tensor,
        mask: Tensor | None = None,
        cache: SlotCache | None = None,
        constants: Sequence[str | int] = (),
    ) -> Any:
        """What the step gives."""
        past: list[Any] = []
        if mask is not None and cache is not None:
            past = [mask, cache]
            if not self.by_shape:
                cache.mark()
                torch._dynamo.mark_dynamic(mask, 3)
        return self._compiled(*tensors, *past, *constants)


def num_programs() -> int:
    """That torch.compile has made in this process."""
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


def own_code(function: Callable[..., Any]) -> Any:
    """The same function or method with code of its own.

    Programs are kept by code, and those of another object must not be taken for this one's.
    """
    inner: Any = getattr(function, "__func__", function)
    copy = FunctionType(
        inner.__code__.replace(), inner.__globals__, inner.__name__, inner.__defaults__, inner.__closure__
    )
    copy.__kwdefaults__ = inner.__kwdefaults__
    return MethodType(copy, function.__self__) if isinstance(function, MethodType) else copy


def outside(guards: Sequence[Any]) -> list[bool]:
    """Which conditions are looked at before every call: not the thousands on the insides of modules, which
    take longer than some layers."""
    return ["_modules" not in guard.name for guard in guards]
