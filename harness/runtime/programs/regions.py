"""Decoder blocks that are compiled one by one and share their programs.

A step that is captured as a graph costs the host nothing, however many programs it consists of, and one block
compiles in seconds where a large model as a whole takes minutes.

Shapes: B sequences, H key/value heads, C cache slots, n new tokens, D head dimension.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from harness.runtime.cache import SlotCache
from harness.runtime.torch_internals import outside, own_code


class Region(nn.Module):
    """A decoder block that stands in the place of the original, `block`.

    In a forward whose `WritePlan` is made for programs (`in_program`), the block runs compiled; in any other
    forward it runs as it is. Fresh prompts share one program whatever their length, and are not captured;
    every other number of tokens has a program of its own.
    """

    def __init__(
        self, block: nn.Module, number: int, run: Callable[..., Any], run_prompt: Callable[..., Any]
    ) -> None:
        super().__init__()
        self.block = block
        self._number, self._run, self._run_prompt = number, run, run_prompt

    @property
    def is_compiled(self) -> bool:
        """Whether the block is compiled by itself."""
        return True

    def __getattr__(self, name: str) -> Any:
        """Attributes that the model reads from its blocks (such as `attention_type`), from the original.

        Only called for names that `nn.Module` does not find in the region itself.
        """
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("block"), name)

    def forward(self, states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Same as the original block."""
        cache = kwargs.get("past_key_values")
        if not isinstance(cache, SlotCache):
            return self.block(states, *args, **kwargs)
        plan = cache.plan
        if plan is None or plan.slots is None or not (plan.in_program and self.is_compiled):
            return self.block(states, *args, **kwargs)
        (keys, values), (row, slot) = cache.buffers(self._number), plan.slots
        rows = BlockCache(keys, values, row, cache.memory.slot_in(keys, slot), plan.fresh)
        run = self._run_prompt if plan.fresh else self._run
        return run(self.block, states, *args, **{**kwargs, "past_key_values": rows})


class BlockCache:
    """The part of a cache that one block needs, as tensors alone, so that a program serves every block."""

    def __init__(self, keys: Tensor, values: Tensor, row: Tensor, slot: Tensor, fresh: bool) -> None:
        self.keys, self.values, self.row, self.slot, self.fresh = keys, values, row, slot, fresh

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Keys, values, written rows and slots."""
        return self.keys, self.values, self.row, self.slot

    def update(self, keys: Tensor, values: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Write [B, H, n, D]; returns all slots [B, H, C, D] to read, or for a fresh prompt its own
        states."""
        self.keys[self.row, :, self.slot] = keys.transpose(1, 2)
        self.values[self.row, :, self.slot] = values.transpose(1, 2)
        return (keys, values) if self.fresh else (self.keys, self.values)


def divide(decoder: Any) -> None:
    """Replace a decoder's blocks by regions; blocks that differ only in weights share their programs."""
    programs: dict[str, tuple[Any, Any]] = {}
    for number, block in enumerate(decoder.layers):
        kind = kind_of(block)
        if kind not in programs:
            programs[kind] = _compiled(dynamic=False), _compiled(dynamic=True)
        decoder.layers[number] = Region(block, number, *programs[kind])


def _run(block: nn.Module, states: Tensor, *args: Any, **kwargs: Any) -> Any:
    return block(states, *args, **kwargs)


def _compiled(dynamic: bool) -> Any:
    # Everything that differs from block to block is read from the arguments, so that the program of the first
    # block serves them all.
    options: dict[str, Any] = {"guard_filter_fn": outside}
    return torch.compile(own_code(_run), fullgraph=True, dynamic=dynamic, options=options)


def kind_of(block: nn.Module) -> str:
    """Everything that a program may take for granted: modules, shapes, settings other than the block's
    number."""
    facts: list[Any] = []
    for name, module in block.named_modules():
        settings = {
            key: value
            for key, value in vars(module).items()
            if key != "layer_idx" and isinstance(value, (bool, int, float, str, type(None)))
        }
        shapes = [(key, tuple(weight.shape)) for key, weight in module.named_parameters(recurse=False)]
        facts.append((name, type(module).__qualname__, sorted(settings.items()), shapes))
    return repr(facts)
