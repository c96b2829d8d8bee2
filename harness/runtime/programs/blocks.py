"""Programs of decoder blocks on a CPU: compiled ahead of time, kept on disk, and called without checks.

All blocks of one kind run the same program (see `ahead`), because their weights and their parts of the cache
are arguments. torch.compile would check its assumptions anew for each of a model's blocks, in every token. As
a program checks nothing, its first output is compared with that of the block itself.

Shapes: B sequences, n new tokens, C cache slots.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import transformers
from torch import Tensor, nn
from typing_extensions import override

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
from harness.runtime.programs.regions import BlockCache, Region, kind_of
from harness.runtime.torch_internals import compile_ahead, machine_facts, runtime_code

_NUM_CACHE = 4
"""Inputs that are a block's part of the cache: keys, values, written rows and slots."""


class BlockPrograms:
    """The programs of a target's blocks, made when they are first called."""

    def __init__(self) -> None:
        self._programs: dict[tuple[str, int, bool], Compiled] = {}
        self.problem: str | None = None
        """Why there are none, after `run` has failed: the blocks then run as they are."""

    @property
    def num_programs(self) -> int:
        """The number of programs that were compiled or loaded so far."""
        return len(self._programs)

    def divide(self, decoder: Any) -> None:
        """Replace a decoder's blocks by regions that run programs; `Region` says when."""
        for number, block in enumerate(decoder.layers):
            decoder.layers[number] = ProgramRegion(block, number, self)

    def run(self, region: ProgramRegion, states: Tensor, values: Sequence[Any], names: list[str]) -> Tensor:
        """The block's output [B, n, H]; values: its other arguments, the last ones by the names given.

        Raises:
            NoProgram: this kind of block cannot be compiled, or its program computes something else.
        """
        cache = next(value for value in values if isinstance(value, BlockCache))
        inputs = [states, *_tensors(values), *cache.tensors, *region.weights]
        key = region.kind, len(states), states.shape[1] == 1
        if key not in self._programs:
            call = BlockCall(region, values, names)
            try:
                made = program(call, inputs, key)
                compare(made(inputs)[0], call(inputs))
            except Exception as error:  # whatever a model's code makes the compiler stumble over
                self.problem = f"{type(error).__name__}: {error}".splitlines()[0]
                raise NoProgram(self.problem) from error
            self._programs[key] = made
        output: Tensor = self._programs[key](inputs)[0]
        return output


class ProgramRegion(Region):
    """A region on a CPU: one program for a single token and one for any larger number."""

    def __init__(self, block: nn.Module, number: int, programs: BlockPrograms) -> None:
        super().__init__(block, number, self._run, self._run)
        self.kind = kind_of(block)
        self._programs = programs
        self._places: Weights = []
        self.weights: list[Tensor] = []
        """The block's weights in the order of its program's inputs, once it has run."""

    @property
    def places(self) -> Weights:
        """Where the block keeps its weights; known once its linear layers are in their final form."""
        if not self._places:
            self._places = list(places_of(self.block))
            self.weights = [getattr(owner, name) for owner, name in self._places]
        return self._places

    @property
    @override
    def is_compiled(self) -> bool:
        return self._programs.problem is None

    def _run(self, _: nn.Module, states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        assert self.places
        return self._programs.run(self, states, [*args, *kwargs.values()], list(kwargs))


class BlockCall(nn.Module):
    """A block as a function of a list of tensors, for export."""

    def __init__(self, region: ProgramRegion, values: Sequence[Any], names: list[str]) -> None:
        super().__init__()
        # In a tuple, so that the block's weights are not taken for the program's own.
        self._region, self._values, self.names = (region,), list(values), names

    @property
    def weights(self) -> list[Tensor]:
        """The last inputs."""
        return self._region[0].weights

    @property
    def block(self) -> nn.Module:
        """The block itself."""
        return self._region[0].block

    @override
    def forward(self, inputs: list[Tensor]) -> Tensor:
        (region,) = self._region
        given = iter(inputs)
        states = next(given)
        values = [_filled(value, given) for value in self._values]
        values = [
            BlockCache(next(given), next(given), next(given), next(given), fresh=False)
            if isinstance(value, BlockCache)
            else value
            for value in values
        ]
        by_place = values[: len(values) - len(self.names)]
        by_name = dict(zip(self.names, values[len(by_place) :], strict=True))
        with substituted(region.places, given):
            output = region.block(states, *by_place, **by_name)
        return output if isinstance(output, Tensor) else output[0]


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    """The tensors among a block's arguments, and those in tuples (position embeddings)."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, tuple):
            yield from value


def _filled(value: Any, given: Iterator[Tensor]) -> Any:
    if isinstance(value, Tensor):
        return next(given)
    return tuple(next(given) for _ in value) if isinstance(value, tuple) else value


def program(call: BlockCall, inputs: list[Tensor], key: tuple[str, int, bool]) -> Compiled:
    """The program for inputs like these, from the disk or compiled."""
    varying = _varying(call, inputs)
    facts = (
        *key,
        *map(constant_sizes, inputs, varying),
        call.names,
        machine_facts(),
        transformers.__version__,
        _sources(call),
    )
    return stored(facts, lambda file: compile_ahead(call, inputs, varying, file))


def _varying(call: BlockCall, inputs: list[Tensor]) -> list[set[int]]:
    """The dimensions of every input that vary: the new tokens, and the slots of the cache and of its mask."""
    num_new = inputs[0].shape[1]
    new = {1} if num_new > 1 else set[int]()
    named = inputs[: -_NUM_CACHE - len(call.weights)]
    # States and positions are [B, n, ...], a mask is [B, 1, n, C].
    varying = [
        {3, *({2} if new else ())} if tensor.ndim == 4 else new if tensor.shape[1:2] == (num_new,) else set()
        for tensor in named
    ]
    return [*varying, {2}, {2}, set(), new, *(set[int]() for _ in call.weights)]


def _sources(call: BlockCall) -> str:
    """The code that a program is made of, and the settings that it reads."""
    files = {inspect.getsourcefile(type(module)) for module in call.block.modules()}
    settings = [str(config) + str(config._attn_implementation) for config in _configs(call.block)]
    texts = [Path(file).read_bytes() for file in sorted(filter(None, files))]
    return hashlib.sha256(b"\0".join([*texts, *map(str.encode, (*settings, runtime_code()))])).hexdigest()


def _configs(block: nn.Module) -> list[Any]:
    """transformers' configurations of a block, which its modules read."""
    return [config for module in block.modules() if (config := getattr(module, "config", None)) is not None]
