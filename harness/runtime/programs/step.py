"""A step over new tokens as a compiled program: torch.compile over the whole step, or an error.

If the graph were allowed to break into pieces, torch would reach its recompile limit silently and run the
remaining layers eagerly. So the graph must be whole, and reaching the limit fails. inductor keeps its results
on disk, so that the next process needs a fraction of the time. Every number of new tokens is a program of its
own, per batch size, to be captured as part of a graph on CUDA (`harness.runtime.cuda_graphs`).
A target is compiled block by block instead, in seconds where a whole model takes minutes: on CUDA as
`harness.runtime.programs.regions` says, on a CPU as `harness.runtime.programs.blocks` says. On a CPU a target
whose blocks cannot be compiled by themselves is compiled as a whole, and a drafter's steps may be parts of
one program, as `harness.runtime.programs.rounds` says.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from harness.config import ConfigError
from harness.runtime.attention import Masks
from harness.runtime.cache import SlotCache
from harness.runtime.cuda_graphs import can_capture
from harness.runtime.programs.ahead import NoProgram
from harness.runtime.torch_internals import fail_at_recompile_limit, mark_dynamic, outside, own_code

_MOST_PROGRAMS = 64
"""Programs per step: widths times batch sizes times slots of the cache."""
SIZES = (1, 8)
"""Numbers of rows that a drafter's own model is compiled for on a CPU; each takes seconds."""
_SIZES_OF_BLOCKS = tuple(range(1, 65))
"""Numbers of new tokens that the target's blocks serve on a CPU, by the same programs."""
_SIZES_BY_SHAPE = (1, 2, 4, 8, 16, 32, 64)
"""The same on CUDA, where other numbers are compiled on demand; a prompt brings more."""


class Program:
    """A step that is compiled anew for every number of new tokens and of sequences.

    num_rows: the number of sequences that it serves; None is any. sizes: the numbers of new tokens that
    drafts should be padded to. by_shape: whether every number of slots is a program of its own, too.
    """

    def __init__(
        self,
        step: Callable[..., Any],
        device: torch.device,
        sizes: Sequence[int] = SIZES,
        divided: bool = False,
    ) -> None:
        """
        step: a method that takes tensors [B, n, ...], then perhaps a mask [B, 1, n, C] and a cache that was
        aimed by `WritePlan.program`, then strings or numbers, and returns one tensor or several. Its modules
        must not change, because they are not checked again. sizes: see the class; for CPUs. divided: the
        blocks of the step's model are compiled by themselves.

        Raises:
            ConfigError: there is nothing to compile with.
        """
        if device.type == "cpu" and not any(map(shutil.which, ("g++", "clang++"))):
            raise ConfigError(
                "target.compile=true: on a CPU needs a C++ compiler (g++, clang++); type target.compile=false"
            )
        fail_at_recompile_limit(_MOST_PROGRAMS)
        self.by_shape = can_capture(device)
        self._whole_sizes = tuple(sizes)
        self.sizes = _SIZES_BY_SHAPE if self.by_shape else _SIZES_OF_BLOCKS if divided else self._whole_sizes
        self.remark: str | None = None
        """What the user should know about how the step is compiled, once it has run."""
        self.num_rows: int | None = None
        self.is_inlined = False
        """Whether the step runs as it is for the moment, as a part of something larger that is compiled."""
        self._step, self._divided = step, divided
        self._compiled: dict[str, Callable[..., Any]] = {}

    def size_for(self, num_rows: int, num_new: int) -> int | None:
        """The number of new tokens to pad to in order to use a program; None: no program serves them."""
        if self.num_rows not in (None, num_rows):
            return None
        return next((size for size in self.sizes if size >= num_new), None)

    def serves(self, num_rows: int, num_new: int) -> bool:
        """Whether there is a program for this many sequences and new tokens."""
        if self.is_inlined:
            return True
        size = self.size_for(num_rows, num_new)
        return size == num_new or (self.by_shape and size is not None)

    @torch.no_grad()
    def __call__(
        self,
        *tensors: Tensor,
        mask: Masks | None = None,
        cache: SlotCache | None = None,
        constants: Sequence[str | int] = (),
        variant: str = "",
    ) -> Any:
        """Run the step and return its output.

        variant: names what else the step's output depends on (hooks in the model): every variant has programs
        of its own.
        """
        past = [] if mask is None or cache is None else [mask, cache]
        if self.is_inlined:
            return self._step(*tensors, *past, *constants)
        if self._divided:
            try:
                return self._step(*tensors, *past, *constants)
            except NoProgram as problem:
                self._undivide(problem)
        if mask is not None and cache is not None and not self.by_shape:
            cache.mark()
            for one in mask.values() if isinstance(mask, dict) else (mask,):
                mark_dynamic(one, 3)
        return self._compiled_as(variant)(*tensors, *past, *constants)

    def _undivide(self, problem: NoProgram) -> None:
        self._divided, self.sizes = False, self._whole_sizes
        sizes = " and ".join(map(str, self.sizes))
        self.remark = (
            f"target.compile=true: the target's blocks cannot be compiled one by one ({problem}). It is"
            f" compiled as a whole, for {sizes} new tokens, which takes minutes"
        )

    def _compiled_as(self, variant: str) -> Callable[..., Any]:
        if variant not in self._compiled:
            self._compiled[variant] = torch.compile(
                own_code(self._step), fullgraph=True, dynamic=False, options={"guard_filter_fn": outside}
            )
        return self._compiled[variant]
