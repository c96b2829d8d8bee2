"""Programs that are compiled ahead of time, by AOTInductor, and kept on disk.

A program is a function of a list of tensors that holds no weights and checks nothing: later processes load it
in milliseconds, and every module of one shape shares it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import filelock
import torch
from torch import Tensor, nn

from harness.runtime.packed_linear import PackedLinear, Product
from harness.runtime.torch_internals import load_compiled, programs_folder

Weights = list[tuple[nn.Module, str]]
"""The tensors that a module multiplies with, as owner and attribute."""

Compiled = Callable[[list[Tensor]], list[Tensor]]
"""A program takes and returns lists of tensors."""


class NoProgram(Exception):
    """What cannot be compiled by itself; the text says why."""


def places_of(module: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    """A module's parameters and buffers; of packed layers, what their products multiply with."""
    products = set[Product]()
    for part in module.modules():
        if isinstance(part, PackedLinear):
            if part.product not in products:
                products.add(part.product)
                yield from ((part.product, name) for name in part.product.weight_names)
            continue
        for name, _ in (*part.named_parameters(recurse=False), *part.named_buffers(recurse=False)):
            yield part, name


@contextmanager
def substituted(places: Weights, given: Iterator[Tensor]) -> Iterator[None]:
    """Within it the weights at these places are those given."""
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


def stored(facts: tuple[object, ...], make: Callable[[Path], None]) -> Compiled:
    """The program that these facts determine, from the disk; `make` compiles a missing one into a file."""
    name = hashlib.sha256(repr(facts).encode()).hexdigest()[:24]
    folder = programs_folder()
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{name}.pt2"
    # Of processes that start together one compiles.
    with filelock.FileLock(folder / f"{name}.lock"):
        if not file.is_file():
            partial = file.with_suffix(".partial.pt2")
            make(partial)
            partial.rename(file)
    return load_compiled(file)


def compare(found: Tensor, expected: Tensor, dtype: torch.dtype | None = None) -> None:
    """Raise ValueError where a program's output differs from what is expected by more than rounding.

    dtype: what the program computes in; None: the type of its output.
    """
    most = torch.finfo(dtype or expected.dtype).eps ** 0.5 * float(expected.abs().max())
    if not torch.allclose(found, expected, rtol=0, atol=most, equal_nan=True):
        raise ValueError("its program computes something else")


def constant_sizes(tensor: Tensor, varying: set[int]) -> tuple[object, ...]:
    """The type and the sizes of an input that do not vary within a program."""
    return tensor.dtype, *(None if axis in varying else size for axis, size in enumerate(tensor.shape))
