"""The memory of a slot cache: one buffer of keys and one of values per layer.

Shapes: B sequences, H key/value heads, C allocated slots, D head dimension.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor

from harness.runtime.attention import Window

_STEP = 256
"""Slots are allocated in multiples of this, so that growing (a copy) is rare."""
_NUMBERS = itertools.count(1)


class CacheMemory:
    """Buffers [B, H, C, D] of all layers, of which a batch that has shrunk sees the first rows.

    Invariant: `keys` and `values` are either all allocated rows, and `_whole` is None, or views of their
    first rows, and `_whole` holds all of them. Only `grow`, `shrink` and a larger batch allocate anew, so
    that a graph finds its memory again whatever sequences are left; `number` changes whenever it would not.
    """

    def __init__(self, window: Window | None = None) -> None:
        """window: bounds the slots of some layers, in which tokens then take turns; see
        `Window.num_slots`."""
        self.window = window
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []
        self._whole: tuple[list[Tensor], list[Tensor]] | None = None
        self._num_slots = 0
        self.number = 0
        """Names the memory: a graph that was captured over another number does not hold."""
        self.reserved = 0
        """Tokens that every sequence gets slots for at least, so that they need not grow."""
        self.slots_per_token = 1
        """Slots of a token; more for a drafter that keeps several guesses of each."""

    @property
    def is_narrowed(self) -> bool:
        """Whether there are more rows than the batch sees."""
        return self._whole is not None

    @property
    def allocated_rows(self) -> int:
        """Rows that are allocated, at least as many as the batch sees."""
        keys, _ = self.whole
        return len(keys[0]) if keys else 0

    @property
    def whole(self) -> tuple[list[Tensor], list[Tensor]]:
        """Keys and values of all allocated rows, per layer."""
        return self._whole or (self.keys, self.values)

    @property
    def num_slots(self) -> int:
        """C: tokens that a sequence has room for. A layer with a window has no more slots than that needs."""
        return self._num_slots if self.keys else 0

    @property
    def num_bytes(self) -> int:
        """Bytes of all allocated rows."""
        keys, values = self.whole
        return sum(buffer.nbytes for buffer in (*keys, *values))

    def slot_in(self, buffer: Tensor, slot: Tensor) -> Tensor:
        """Where a layer's buffer [B, H, C, D] has the tokens of these slots."""
        return slot if self.window is None else slot % buffer.shape[2]

    @contextmanager
    def given(self, keys: list[Tensor], values: list[Tensor]) -> Iterator[None]:
        """Within it these are the buffers, for a program that takes them as inputs; without a window."""
        kept = self.keys, self.values, self._num_slots
        self.keys, self.values, self._num_slots = keys, values, keys[0].shape[2]
        try:
            yield
        finally:
            self.keys, self.values, self._num_slots = kept

    def free(self) -> None:
        """Drop all buffers."""
        self.keys, self.values, self._whole = [], [], None

    def shrink(self) -> None:
        """Have as few slots as a new cache would; what they hold is lost."""
        least = self._rounded(1)
        if self.num_slots <= least:
            return
        self.keys, self.values = self.whole
        self._whole = None
        self._num_slots = least
        # Masks have fewer columns, even where no layer gives slots back.
        self.number = next(_NUMBERS)
        for buffers in (self.keys, self.values):
            for layer, buffer in enumerate(buffers):
                if buffer.shape[2] > self._slots_in(layer):
                    buffers[layer] = self._allocate(buffer, len(buffer), layer)

    def narrow(self, num_rows: int) -> None:
        """Show the first `num_rows` rows, as views."""
        self.keys, self.values = self.whole
        self._whole = None
        if self.keys and len(self.keys[0]) > num_rows:
            self._whole = self.keys, self.values
            self.keys = [buffer[:num_rows] for buffer in self.keys]
            self.values = [buffer[:num_rows] for buffer in self.values]

    def grow(self, num_slots: int, num_rows: int) -> None:
        """Have `num_slots` slots in all allocated rows and layers; then show the first `num_rows` rows."""
        if num_slots <= self.num_slots:
            return
        if not self.keys:
            return
        self.keys, self.values = self.whole
        self._whole = None
        self._num_slots = self._rounded(num_slots)
        # Masks have more columns, even where no layer gets more slots.
        self.number = next(_NUMBERS)
        for buffers in (self.keys, self.values):
            for layer, buffer in enumerate(buffers):
                if buffer.shape[2] < self._slots_in(layer):
                    buffers[layer] = self._allocate(buffer, len(buffer), layer)
                    buffers[layer][:, :, : buffer.shape[2]] = buffer
        self.narrow(num_rows)

    def add_layer(self, keys: Tensor, values: Tensor, num_rows: int, num_slots: int) -> None:
        """Allocate the next layer, shaped like its first states [B, H, n, D]."""
        if not self.keys:
            self._num_slots = self._rounded(num_slots)
        layer = len(self.keys)
        self.keys.append(self._allocate(keys, num_rows, layer))
        self.values.append(self._allocate(values, num_rows, layer))

    def gather_rows(self, rows: list[int]) -> None:
        """Move these rows to the front, in this order."""
        moves = [(place, row) for place, row in enumerate(rows) if place != row]
        if moves:
            places, sources = map(list, zip(*moves, strict=True))
            for buffer in (*self.keys, *self.values):
                buffer[places] = buffer[sources]

    def _rounded(self, num_slots: int) -> int:
        return -(-max(num_slots, self.reserved * self.slots_per_token) // _STEP) * _STEP

    def _slots_in(self, layer: int) -> int:
        if self.window is None or not self.window.holds_in(layer):
            return self._num_slots
        return min(self._num_slots, self.window.num_slots)

    def _allocate(self, like: Tensor, num_rows: int, layer: int) -> Tensor:
        self.number = next(_NUMBERS)
        # Zeros, not garbage: masked slots are multiplied by zero weights, and 0 * NaN is NaN.
        return like.new_zeros((num_rows, like.shape[1], self._slots_in(layer), like.shape[3]))
