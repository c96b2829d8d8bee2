"""The part of a round that a drafter computes, on a CPU: one program, as CUDA graphs are on a GPU.

A head of a few million weights is read in a millisecond. Its steps one by one, each compiled, take several
times as long, because every call checks its assumptions and the tree between the calls is built of small
operations. AOTInductor compiles the whole part, for any number of pairs and cache slots, once per machine.

The graph itself names the file that is kept, with its constants and the compiler's options, so that no file
outlives the code or the settings that it was made from. Weights and the cache are inputs: heads of one shape
share their program. As a program checks nothing, its first output is compared with that of the part itself.

Shapes: B sequences, m pairs, C cache slots.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import fields, replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from typing_extensions import override

from harness.runtime.cache import SlotCache
from harness.runtime.programs.ahead import (
    Compiled,
    NoProgram,
    Weights,
    compare,
    constant_sizes,
    places_of,
    stored,
    substituted,
)
from harness.runtime.torch_internals import AHEAD_OPTIONS, compile_exported, exported, machine_facts
from harness.system.progress import waiting

Output = TypeVar("Output", bound=Any)
"""A dataclass of tensors, numbers and None; a program gives the tensors."""

_MOST_CONSTANTS = 4096
"""Elements of a tensor that may be part of a program; weights are inputs."""
_LEAST_EQUAL = 0.5
"""Share of the tokens and parents that must be those of the function: candidates whose scores are the same
but for rounding change places, and their children with them."""
_USUAL_S = 15


class RoundPrograms:
    """A function of tensors that gives a draft, as programs: one per number of sequences.

    Inputs with more than one axis are [B, m, ...], others [B]; m is at least 2.
    """

    def __init__(
        self,
        function: Callable[..., Output],
        modules: Sequence[nn.Module],
        cache: SlotCache,
        inlined: Callable[[], AbstractContextManager[None]],
    ) -> None:
        """
        function: takes features first; neither reads values of its tensors nor depends on the lengths that
        the host knows. It gives a dataclass of tensors, numbers and None.
        modules: hold all weights that it multiplies with. cache: what it writes. inlined: within it steps run
        as they are.
        """
        self._function, self._modules, self._cache, self._inlined = function, modules, cache, inlined
        self._programs: dict[int, tuple[Compiled, Any, list[Tensor]]] = {}
        self.problem: str | None = None
        """Why there is no program, after a call has failed to make one: the function then runs as it is."""

    @property
    def num_programs(self) -> int:
        """The number of programs that were compiled or loaded so far."""
        return len(self._programs)

    @torch.no_grad()
    def __call__(self, *tensors: Tensor, where: object = None) -> Any:
        """The function's output. where: not needed, because programs are given their memory."""
        num_rows = len(tensors[0])
        if num_rows not in self._programs:
            with self._inlined():
                expected = self._function(*tensors)
                try:
                    self._programs[num_rows] = self._made(tensors, expected)
                except Exception as error:  # whatever a drafter's code makes the compiler stumble over
                    self.problem = f"{type(error).__name__}: {error}".splitlines()[0]
            return expected
        program, like, weights = self._programs[num_rows]
        memory = self._cache.memory
        outputs = program([*tensors, *memory.keys, *memory.values, *weights])
        return replace(like, **dict(zip(_tensor_names(like), outputs, strict=True)))

    def _made(self, tensors: Sequence[Tensor], expected: Any) -> tuple[Compiled, Any, list[Tensor]]:
        memory = self._cache.memory
        if memory.window is not None:
            raise NoProgram("its cache has a window")
        every = [part for module in self._modules for part in module.modules()]
        if any(getattr(part, "rope_type", "") == "longrope" for part in every):
            # It keeps tensors of the last forward, which are not real ones during an export.
            raise NoProgram("its positions are longrope's")
        places = list(dict.fromkeys(place for module in self._modules for place in places_of(module)))
        weights = [getattr(owner, name) for owner, name in places]
        caches = [*memory.keys, *memory.values]
        inputs = [*tensors, *caches, *weights]
        varying: list[set[int]] = [
            *({1} if tensor.ndim > 1 else set() for tensor in tensors),
            *({2} for _ in caches),
            *(set() for _ in weights),
        ]
        call = _Call(self._function, len(tensors), self._cache, places, _tensor_names(expected))
        graph = exported(call, inputs, varying)
        parts = [part for part in graph.graph_module.modules() if isinstance(part, torch.fx.GraphModule)]
        facts = (
            *(str(part.graph) for part in parts),
            *map(constant_sizes, inputs, varying),
            *(weight.stride() for weight in weights),
            *map(_content, graph.constants.values()),
            AHEAD_OPTIONS,
            machine_facts(),
        )
        with waiting("compiling the rounds of a head (once)", usual_s=_USUAL_S):
            program = stored(facts, lambda file: compile_exported(graph, file))
        found = dict(zip(call.names, program(inputs), strict=True))
        for name in call.names:
            wanted: Tensor = getattr(expected, name)
            if wanted.is_floating_point():
                compare(found[name].sort().values, wanted.sort().values, tensors[0].dtype)
            elif (found[name] == wanted).float().mean() < _LEAST_EQUAL:
                raise ValueError("its program drafts something else")
        return program, expected, weights


class _Call(nn.Module):
    """The function as one of a list of tensors, for export: those given to it, the cache, the weights."""

    def __init__(
        self,
        function: Callable[..., Output],
        num_given: int,
        cache: SlotCache,
        places: Weights,
        names: list[str],
    ) -> None:
        super().__init__()
        self._function, self._num_given, self._memory = function, num_given, cache.memory
        # In a tuple, so that the weights are not taken for the program's own.
        self._places, self.names = (places,), names

    @override
    def forward(self, inputs: list[Tensor]) -> list[Tensor]:
        given: Iterator[Tensor] = iter(inputs)
        tensors = [next(given) for _ in range(self._num_given)]
        keys = [next(given) for _ in self._memory.keys]
        values = [next(given) for _ in self._memory.values]
        with self._memory.given(keys, values), substituted(self._places[0], given):
            output = self._function(*tensors)
        return [getattr(output, name) for name in self.names]


def _tensor_names(output: Any) -> list[str]:
    """The fields of an output that are tensors.

    Raises:
        NoProgram: others hold some, which a program could not return.
    """
    values = {field.name: getattr(output, field.name) for field in fields(output)}
    if other := [name for name, value in values.items() if not isinstance(value, Tensor | int | None)]:
        raise NoProgram(f"its drafts have {other[0]}")
    return [name for name, value in values.items() if isinstance(value, Tensor)]


def _content(constant: Any) -> str:
    """What a constant of a graph holds.

    Raises:
        NoProgram: it is as large as weights are, and those of another head may differ.
    """
    if not isinstance(constant, Tensor) or constant.numel() > _MOST_CONSTANTS:
        raise NoProgram("it reads weights that are not those of the head or of the target's ends")
    content = constant.detach().contiguous().flatten().view(torch.uint8)
    digest = hashlib.sha256(content.numpy().tobytes()).hexdigest()
    return f"{constant.dtype} {tuple(constant.shape)} {digest}"
