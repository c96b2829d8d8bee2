"""Blocks of a decoder that are compiled one by one: all of them are one program.

A step that is captured as a graph costs the host nothing however many programs it is made of, and one block
compiles in seconds where the whole of a large model takes minutes.

Shapes: B sequences, H key/value heads, C cache slots, n new tokens, D head dimension.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx.experimental import _config

from harness.runtime.cache import SlotCache
from harness.runtime.compiled_step import outside, own_code


class Region(nn.Module):
    """A block; compiled in forwards that write to a `SlotCache` at places that are tensors, else as it is.

    Fresh prompts are one program whatever their length, and are not captured; every other number of tokens is
    one of its own.
    """

    def __init__(
        self, block: nn.Module, number: int, run: Callable[..., Any], run_prompt: Callable[..., Any]
    ) -> None:
        super().__init__()
        self.block = block
        self._number, self._run, self._run_prompt = number, run, run_prompt

    def __getattr__(self, name: str) -> Any:
        """What the model asks its blocks for."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("block"), name)

    def forward(self, states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """As the block."""
        cache = kwargs.get("past_key_values")
        if not (isinstance(cache, SlotCache) and cache.places is not None):
            return self.block(states, *args, **kwargs)
        rows = _Rows(*cache.buffers(self._number), *cache.places, cache.fresh)
        run = self._run_prompt if cache.fresh else self._run
        return run(self.block, states, *args, **{**kwargs, "past_key_values": rows})


class _Rows:
    """One block's part of a cache."""

    def __init__(self, keys: Tensor, values: Tensor, row: Tensor, slot: Tensor, fresh: bool) -> None:
        self.keys, self.values, self.row, self.slot, self.fresh = keys, values, row, slot, fresh

    def update(self, keys: Tensor, values: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Write [B, H, n, D]; all that attention may read, [B, H, C, D], or of a fresh prompt the same."""
        self.keys[self.row, :, self.slot] = keys.transpose(1, 2)
        self.values[self.row, :, self.slot] = values.transpose(1, 2)
        return (keys, values) if self.fresh else (self.keys, self.values)


def divide(decoder: Any) -> None:
    """Put regions in the place of a decoder's blocks; of one program those that differ in weights alone."""
    programs: dict[str, tuple[Any, Any]] = {}
    for number, block in enumerate(decoder.layers):
        kind = _kind(block)
        if kind not in programs:
            programs[kind] = _compiled(dynamic=False), _compiled(dynamic=True)
        decoder.layers[number] = Region(block, number, *programs[kind])


def any_sizes() -> AbstractContextManager[Any]:
    """Within it, programs that are made for any size tell sizes apart that happen to be equal.

    Else a prompt as long as a head is wide, or as many prompts as rows, would make a program for that alone.
    """
    made: AbstractContextManager[Any] = _config.patch(use_duck_shape=False)  # type: ignore[attr-defined]
    return made


def _run(block: nn.Module, states: Tensor, *args: Any, **kwargs: Any) -> Any:
    return block(states, *args, **kwargs)


def _compiled(dynamic: bool) -> Any:
    # What differs from block to block is looked up in the block or its part of the cache, so that the program
    # of the first serves them all.
    options: dict[str, Any] = {"guard_filter_fn": outside}
    return torch.compile(own_code(_run), fullgraph=True, dynamic=dynamic, options=options)


def _kind(block: nn.Module) -> str:
    """Everything of a block that a program may count on: modules, shapes, settings other than its number."""
    told: list[Any] = []
    for name, module in block.named_modules():
        settings = {
            key: value
            for key, value in vars(module).items()
            if key != "layer_idx" and isinstance(value, (bool, int, float, str, type(None)))
        }
        shapes = [(key, tuple(weight.shape)) for key, weight in module.named_parameters(recurse=False)]
        told.append((name, type(module).__qualname__, sorted(settings.items()), shapes))
    return repr(told)
