"""Programs of decoder blocks on a CPU: compiled ahead of time, kept on disk, and called without checks.

All blocks of one kind run the same program, because their weights and their parts of the cache are arguments.
AOTInductor compiles it once per machine; later processes load the file in milliseconds. torch.compile would
check its assumptions anew for each of a model's blocks, in every token. As a program checks nothing, its
first output is compared with that of the block itself.

Shapes: B sequences, n new tokens, C cache slots.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import filelock
import torch
import transformers
from torch import Tensor, nn
from typing_extensions import override

from harness.runtime.compiled_blocks import BlockCache, Region, kind_of
from harness.runtime.packed_linear import PackedLinear, Product
from harness.runtime.torch_internals import (
    compile_ahead,
    load_compiled,
    machine_facts,
    programs_folder,
    runtime_code,
)

Weights = list[tuple[nn.Module, str]]
"""The tensors that a block multiplies with, as owner and attribute."""

_NUM_CACHE = 4
"""Inputs that are a block's part of the cache: keys, values, written rows and slots."""


class NoProgram(Exception):
    """A block that cannot be compiled by itself; its text says why."""


class BlockPrograms:
    """The programs of a target's blocks, made when they are first called."""

    def __init__(self) -> None:
        self._programs: dict[tuple[str, int, bool], Any] = {}
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
                _compare(made(inputs)[0], call(inputs))
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
            self._places = list(_places(self.block))
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
        with _substituted(region.places, given):
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


def _places(block: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    """A block's parameters and buffers; of packed layers, what their products multiply with."""
    products = set[Product]()
    for module in block.modules():
        if isinstance(module, PackedLinear):
            if module.product not in products:
                products.add(module.product)
                yield from ((module.product, name) for name in module.product.weight_names)
            continue
        for name, _ in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
            yield module, name


@contextmanager
def _substituted(places: Weights, given: Iterator[Tensor]) -> Iterator[None]:
    """Within it the block's weights are those given."""
    kept: list[tuple[dict[str, Any], str, Any]] = []
    for owner, name in places:
        tables: tuple[dict[str, Any], ...] = owner._parameters, owner._buffers, vars(owner)
        table = next(table for table in tables if name in table)
        kept.append((table, name, table[name]))
        table[name] = next(given)
    try:
        yield
    finally:
        for table, name, tensor in kept:
            table[name] = tensor


def program(call: BlockCall, inputs: list[Tensor], key: tuple[str, int, bool]) -> Any:
    """The program for inputs like these, from the disk or compiled; it takes and returns lists of tensors."""
    varying = _varying(call, inputs)
    facts = (
        *key,
        *map(_constants, inputs, varying),
        call.names,
        machine_facts(),
        transformers.__version__,
        _sources(call),
    )
    name = hashlib.sha256(repr(facts).encode()).hexdigest()[:24]
    folder = programs_folder()
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{name}.pt2"
    # Of processes that start together one compiles.
    with filelock.FileLock(folder / f"{name}.lock"):
        if not file.is_file():
            partial = file.with_suffix(".partial.pt2")
            compile_ahead(call, inputs, varying, partial)
            partial.rename(file)
    return load_compiled(file)


def _compare(found: Tensor, expected: Tensor) -> None:
    """Raise ValueError where a program's output differs from its block's by more than rounding."""
    most = torch.finfo(expected.dtype).eps ** 0.5 * float(expected.abs().max())
    if not torch.allclose(found, expected, rtol=0, atol=most, equal_nan=True):
        raise ValueError("its program computes something else")


def _constants(tensor: Tensor, varying: set[int]) -> tuple[object, ...]:
    """The type and the sizes of an input that do not vary within a program."""
    return tensor.dtype, *(None if axis in varying else size for axis, size in enumerate(tensor.shape))


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
