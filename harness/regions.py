"""Blocks of a decoder that are compiled one by one: all of them are one program.

A step that is captured as a graph costs the host nothing however many programs it is made of, and one block
compiles in seconds where the whole of a large model takes minutes.

Shapes: B sequences, H key/value heads, C cache slots, n new tokens, D head dimension.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from harness.cache import SlotCache
from harness.compiled import outside


class Region(nn.Module):
    """A block; compiled in forwards that write to a `SlotCache` at places that are tensors, else as it is."""

    def __init__(self, block: nn.Module, number: int, run: Callable[..., Any]) -> None:
        super().__init__()
        self.block = block
        self._number, self._run = number, run

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
        rows = _Rows(*cache.buffers(self._number), *cache.places)
        return self._run(self.block, states, *args, **{**kwargs, "past_key_values": rows})


class _Rows:
    """One block's part of a cache."""

    def __init__(self, keys: Tensor, values: Tensor, row: Tensor, slot: Tensor) -> None:
        self.keys, self.values, self.row, self.slot = keys, values, row, slot

    def update(self, keys: Tensor, values: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Write [B, H, n, D]; all that attention may read, [B, H, C, D]."""
        self.keys[self.row, :, self.slot] = keys.transpose(1, 2)
        self.values[self.row, :, self.slot] = values.transpose(1, 2)
        return self.keys, self.values


def divide(decoder: Any) -> None:
    """Put regions in the place of a decoder's blocks."""

    def run(block: nn.Module, states: Tensor, *args: Any, **kwargs: Any) -> Any:
        return block(states, *args, **kwargs)

    # What differs from block to block is looked up in the block or its part of the cache, so that the program
    # of the first serves them all.
    compiled = torch.compile(run, fullgraph=True, dynamic=False, options={"guard_filter_fn": outside})
    for number, block in enumerate(decoder.layers):
        decoder.layers[number] = Region(block, number, compiled)
