"""Key/value cache of the target or a drafter: rows are written at chosen slots and can be moved.

Shapes: B sequences, H key/value heads, C allocated slots, D head dimension, n new tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import Cache

from harness.runtime.attention import Window
from harness.runtime.cache_memory import CacheMemory
from harness.runtime.cuda_graphs import Captured
from harness.runtime.torch_internals import mark_dynamic
from harness.runtime.write_plan import WritePlan


class SlotCache(Cache):  # type: ignore[misc]
    """Keys and values of all layers; every sequence has a length of its own.

    transformers' layers hold one length for the whole batch and append. Here the caller says where a forward
    writes (`aim`, with a `WritePlan`) and, after the forward, which rows stay (`commit`). Slots at or past a
    sequence's length are free: whatever was written there is never read again before it is overwritten.

    Two context managers change what a forward sees for a moment. Within `lengths_on_device` the lengths are a
    tensor and the host's list does not count, as in a graph. Within `with_empty_rows` the batch has as many
    rows as a program was compiled for; the additional ones are empty.
    """

    def __init__(
        self, capture: Callable[..., Captured | None] | None = None, window: Window | None = None
    ) -> None:
        """`capture`: makes a graph of a function, see `Steps.captured`; `commit` then moves rows by a graph.
        window: of some layers, whose slots then go round; see `Window.num_slots`."""
        super().__init__(layers=[])
        self.memory = CacheMemory(window)
        self.lengths: list[int] = []
        """Committed tokens of every sequence, as the host knows them."""
        self.plan: WritePlan | None = None
        """Where the next forward writes and what it reads, as the last `aim` said."""
        self._device_lengths: Tensor | None = None
        self._moves = capture(self._move, _staying) if capture else None
        # The plan's fields that a compiled forward reads. Read from the plan, they would be conditions on all
        # of its fields, and every new length another program.
        self._slots: tuple[Tensor, Tensor] | None = None
        self._reads_all = False

    def clear(self, num_rows: int) -> None:
        """Start `num_rows` empty sequences; memory with as many rows or more is used again.

        What longer sequences needed before is given back, because compiled steps read all slots. Graphs need
        their memory where it is.
        """
        if self.memory.allocated_rows < num_rows:
            self.memory.free()
        elif self._moves is None:
            self.memory.shrink()
        self._resize([0] * num_rows)

    @contextmanager
    def with_empty_rows(self, num_rows: int) -> Iterator[None]:
        """Within it the batch has `num_rows` rows: empty ones follow the sequences.

        There must be as many allocated rows (`CacheMemory.allocated_rows`).
        """
        lengths = self.lengths
        self._resize([*lengths, *[0] * (num_rows - len(lengths))])
        try:
            yield
        finally:
            self._resize(lengths)

    def _resize(self, lengths: list[int]) -> None:
        self.lengths = lengths
        self.memory.narrow(len(lengths))

    @property
    def known_lengths(self) -> Sequence[int] | Tensor:
        """Committed tokens: the host's list, or the tensor within `lengths_on_device`."""
        return self.lengths if self._device_lengths is None else self._device_lengths

    @contextmanager
    def lengths_on_device(self, lengths: Tensor) -> Iterator[None]:
        """Within it the lengths are the tensor [B] int64; the host does not know them."""
        self._device_lengths = lengths
        try:
            yield
        finally:
            self._device_lengths = None

    def base(self, device: torch.device) -> Tensor:
        """The lengths [B] int64 on the device."""
        if self._device_lengths is not None:
            return self._device_lengths
        return torch.tensor(self.lengths).to(device, non_blocking=True)

    def make_room(self, count: int) -> None:
        """Allocate at least `count` slots behind every sequence."""
        self.memory.grow(max(self.lengths) + count, len(self.lengths))

    def aim(self, plan: WritePlan) -> None:
        """The next forward follows `plan`; slots that it needs are allocated."""
        assert self._device_lengths is None or plan.in_program, "the host does not know the lengths"
        self.plan, self._slots, self._reads_all = plan, plan.slots, plan.reads_all
        self.memory.grow(plan.num_slots, len(self.lengths))

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any) -> Any:
        """Write [B, H, n, D] of one layer; returns the keys and values that attention reads, [B, H, C, D], or
        all slots of a layer with a window."""
        memory = self.memory
        if layer_idx == len(memory.keys):
            assert self.plan is not None, "aim() comes first"
            memory.add_layer(key_states, value_states, len(self.lengths), self.plan.num_slots)
        keys, values = memory.keys[layer_idx], memory.values[layer_idx]
        self._put(keys, key_states)
        self._put(values, value_states)
        if self._reads_all:
            return keys, values
        assert self.plan is not None
        rows, end = self.plan.rows, self.plan.end
        return keys[rows, :, :end], values[rows, :, :end]

    def _put(self, buffer: Tensor, states: Tensor) -> None:
        if self._slots is not None:
            row, slot = (index.to(buffer.device) for index in self._slots)
            buffer[row, :, self.memory.slot_in(buffer, slot)] = states.transpose(1, 2)
            return
        plan = self.plan
        assert plan is not None
        assert plan.start is not None
        if plan.end <= buffer.shape[2]:
            buffer[plan.rows, :, plan.start : plan.end] = states
        else:
            slot = torch.arange(plan.start, plan.end, device=buffer.device)
            buffer[plan.rows, :, self.memory.slot_in(buffer, slot)] = states

    def commit(self, path: Tensor | None, length: list[int]) -> None:
        """Keep, per sequence, the pending token's row and the rows of the accepted nodes `path`.

        path [B, n] int64: accepted nodes in order, anything after length[b]; None where they are already
        the first ones (a chain). length: accepted nodes of each sequence.
        """
        most = max(length)
        # A graph moves as many rows as there are, whatever was accepted; only a whole batch has one.
        moves = None if self.memory.is_narrowed else self._moves
        if path is not None and (most or moves):
            path = path if moves else path[:, :most]
            counts = torch.tensor(length).to(path.device, non_blocking=True)
            if moves:
                moves(path, counts, self.base(path.device), where=self.where)
            else:
                self._move(path, counts, self.base(path.device))
        self.advance([1 + count for count in length])

    def _move(self, path: Tensor, counts: Tensor, lengths: Tensor) -> None:
        """Copy the rows of nodes `path` [B, m] right behind the pending token's; counts, lengths [B]."""
        rows = torch.arange(len(path), device=path.device)[:, None]
        places = torch.arange(path.shape[1], device=path.device)
        base = lengths[:, None] + 1
        # Padding of shorter paths copies a row onto itself.
        source = base + torch.where(places < counts[:, None], path, places)
        target = base + places
        for buffer in (*self.memory.keys, *self.memory.values):
            # Layers of a target that spans devices keep their rows where they are.
            row, to, here = (index.to(buffer.device) for index in (rows, target, source))
            buffer[row, :, self.memory.slot_in(buffer, to)] = buffer[
                row, :, self.memory.slot_in(buffer, here)
            ]

    def advance(self, counts: Sequence[int] | Tensor) -> None:
        """Commit the first `counts[b]` uncommitted tokens of each sequence and drop the others.

        A negative count gives up committed tokens.
        """
        if self._device_lengths is not None:
            self._device_lengths = self._device_lengths + torch.as_tensor(counts)
            return
        self.lengths = [old + int(new) for old, new in zip(self.lengths, counts, strict=True)]

    def keep(self, rows: list[int]) -> None:
        """Continue with these sequences only, in this order."""
        self.memory.gather_rows(rows)
        self._resize([self.lengths[row] for row in rows])

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """The longest committed length."""
        return max(self.lengths, default=0)

    def mark(self) -> None:
        """Tell torch.compile that the number of slots varies, before a forward that reads all of them."""
        for buffer in (*self.memory.keys, *self.memory.values):
            mark_dynamic(buffer, 2)

    def buffers(self, layer: int) -> tuple[Tensor, Tensor]:
        """Keys and values of a layer, [B, H, C, D]; fewer slots where it has a window.

        For fresh prompts, of all allocated rows: they are only written there, so one program serves a batch
        of any size.
        """
        memory = self.memory
        keys, values = memory.whole if self.plan and self.plan.fresh else (memory.keys, memory.values)
        return keys[layer], values[layer]

    @property
    def num_slots(self) -> int:
        """C: tokens that a sequence has room for."""
        return self.memory.num_slots

    @property
    def where(self) -> int:
        """Names the memory of the rows; a graph that was captured over another number does not hold."""
        return self.memory.number


def _staying(path: Tensor, counts: Tensor, lengths: Tensor) -> tuple[Tensor, ...]:
    """Inputs that move no rows, for the runs before a capture: a real move, done twice, would move others."""
    return path, torch.zeros_like(counts), lengths
