"""Key/value cache of the target or a drafter: rows are written at chosen slots and can be moved.

Shapes: B sequences, H key/value heads, C allocated slots, D head dimension, n new tokens.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import Cache

from harness.runtime.cuda_graphs import Captured

_STEP = 256
"""Slots are allocated in multiples of this, so that growing (a copy) is rare."""
_NUMBERS = itertools.count(1)


class SlotCache(Cache):  # type: ignore[misc]
    """Keys and values of all layers; every sequence has a length of its own.

    where: names the memory of the rows; where it is another, a graph that was captured does not hold.

    transformers' layers hold one length for the whole batch and append; here the caller says where a
    forward writes (`aim`) and, after it, which rows stay (`commit`). Rows at or past `lengths` are free.
    """

    def __init__(self, capture: Callable[..., Captured | None] | None = None) -> None:
        """capture: makes a graph of a function, see `Steps.captured`; rows are then moved by one."""
        super().__init__(layers=[])
        self.lengths: list[int] = []
        self._given: Tensor | None = None
        self._moves = capture(self._move, _staying) if capture else None
        self._all: tuple[list[Tensor], list[Tensor]] | None = None
        self.where = 0
        self._keys: list[Tensor] = []
        self._values: list[Tensor] = []
        self._rows: slice | None = None
        self._start: int | None = None
        self._slots: tuple[Tensor, Tensor] | None = None
        self._whole = self._indexed = self.fresh = False
        self._end = 0
        self._needed = self._reserved = 0

    def reserve(self, num_slots: int) -> None:
        """From now on no sequence has fewer slots, so that they need not grow."""
        self._reserved = num_slots

    def clear(self, num_rows: int) -> None:
        """Start `num_rows` empty sequences; the memory of as many or more is used again."""
        if self.allocated_rows < num_rows:
            self._keys, self._values, self._all = [], [], None
        self._resize([0] * num_rows)

    def _narrow(self) -> None:
        """Of all rows, those of the sequences there are: views, so that graphs find their memory again."""
        num_rows = len(self.lengths)
        if self._keys and len(self._keys[0]) > num_rows:
            self._all = self._all or (self._keys, self._values)
            self._keys = [buffer[:num_rows] for buffer in self._keys]
            self._values = [buffer[:num_rows] for buffer in self._values]

    @property
    def allocated_rows(self) -> int:
        """Rows that are allocated, as many as the sequences or more."""
        keys = self._all[0] if self._all else self._keys
        return len(keys[0]) if keys else 0

    @contextmanager
    def widened(self, num_rows: int) -> Iterator[None]:
        """Within it there are more rows, up to `allocated_rows`: empty ones behind the sequences."""
        lengths = self.lengths
        self._resize([*lengths, *[0] * (num_rows - len(lengths))])
        try:
            yield
        finally:
            self._resize(lengths)

    def _resize(self, lengths: list[int]) -> None:
        self._keys, self._values = self._all or (self._keys, self._values)
        self._all, self.lengths = None, lengths
        self._narrow()

    @property
    def known_lengths(self) -> Sequence[int] | Tensor:
        """Committed tokens: a list, or within `given` the tensor."""
        return self.lengths if self._given is None else self._given

    @contextmanager
    def given(self, lengths: Tensor) -> Iterator[None]:
        """Within it the lengths [B] are on the device; the host does not know them."""
        self._given = lengths
        try:
            yield
        finally:
            self._given = None

    def base(self, device: torch.device) -> Tensor:
        """The lengths [B] int64 on the device."""
        if self._given is not None:
            return self._given
        return torch.tensor(self.lengths).to(device, non_blocking=True)

    def make_room(self, count: int) -> None:
        """Have at least `count` slots behind every sequence."""
        self._needed = max(self.lengths) + count
        self._grow()

    def _grow(self) -> None:
        """All rows that are allocated, in all layers at once: they stay one memory, whoever is left in it."""
        if self._needed <= self.num_slots:
            return
        self._keys, self._values = self._all or (self._keys, self._values)
        self._all = None
        for buffers in (self._keys, self._values):
            for layer, buffer in enumerate(buffers):
                buffers[layer] = self._allocate(buffer, len(buffer))
                buffers[layer][:, :, : buffer.shape[2]] = buffer
        self._narrow()

    def aim(
        self,
        rows: slice,
        count: int,
        device: torch.device,
        *,
        ahead: int = 0,
        whole: bool = False,
        indexed: bool = False,
        fresh: bool = False,
    ) -> None:
        """The next forward writes `count` tokens behind the committed ones of `rows`.

        ahead: uncommitted tokens that earlier forwards wrote there and that stay readable. whole: all rows
        are written, and attention reads every allocated slot, of which the mask alone says what counts: all
        forwards over as many tokens have the same shapes (until more slots are allocated). indexed: the
        places that are written are tensors too, so that they are one program. fresh: the rows are empty and
        the places tensors, so that a program may let attention read the new tokens alone.
        """
        # The first forward of all allocates, block by block.
        self._rows, self._whole, self.fresh = rows, whole, fresh and bool(self._keys)
        self._indexed = indexed
        if self._given is None:
            lengths = [length + ahead for length in self.lengths[rows]]
            self._end = max(lengths) + count
            self._needed = max(self.lengths) + ahead + count if whole else max(self._end, *self.lengths)
            self._grow()
            if len(set(lengths)) == 1 and not (indexed or self.fresh):
                # One length: a contiguous block, no index tensors.
                self._start, self._slots = lengths[0], None
                return
        assert self._given is None or (whole and indexed), "the host does not know the lengths"
        base = self.base(device)[rows, None] + ahead
        row = torch.arange(rows.start, rows.stop, device=device)[:, None]
        self._start, self._slots = None, (row, base + torch.arange(count, device=device))

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any) -> Any:
        """Write [B, H, n, D] of one layer; return what attention may read: slots up to the last new one."""
        assert self._rows is not None, "aim() comes first"
        if layer_idx == len(self._keys):
            self._keys.append(self._allocate(key_states, len(self.lengths)))
            self._values.append(self._allocate(value_states, len(self.lengths)))
        if self._whole:
            keys, values = self._keys[layer_idx], self._values[layer_idx]
            self._put(keys, key_states)
            self._put(values, value_states)
            return keys, values
        return (
            self._write(self._keys[layer_idx], key_states),
            self._write(self._values[layer_idx], value_states),
        )

    def commit(self, path: Tensor | None, length: list[int]) -> None:
        """Keep, per sequence, the pending token's row and the rows of the accepted nodes `path`.

        path [B, n] int64: accepted nodes in order, anything after length[b]; None where they are already
        the first ones (a chain). length: accepted nodes of each sequence.
        """
        most = max(length)
        # A graph moves as many rows as there are, whatever was accepted; only a whole batch has one.
        moves = self._moves if self._all is None else None
        if path is not None and (most or moves):
            path = path if moves else path[:, :most]
            counts = torch.tensor(length).to(path.device, non_blocking=True)
            if moves:
                moves(path, counts, self.base(path.device), where=self.where)
            else:
                self._move(path, counts, self.base(path.device))
        self.advance([1 + count for count in length])

    def _move(self, path: Tensor, counts: Tensor, lengths: Tensor) -> None:
        """Bring the rows of nodes `path` [B, m] right behind the pending token's; counts, lengths [B]."""
        rows = torch.arange(len(path), device=path.device)[:, None]
        places = torch.arange(path.shape[1], device=path.device)
        base = lengths[:, None] + 1
        # Padding of shorter paths copies a row onto itself.
        source = base + torch.where(places < counts[:, None], path, places)
        target = base + places
        for buffer in (*self._keys, *self._values):
            # Layers of a target that spans devices keep their rows where they are.
            row, to, here = (index.to(buffer.device) for index in (rows, target, source))
            buffer[row, :, to] = buffer[row, :, here]

    def advance(self, counts: Sequence[int] | Tensor) -> None:
        """The first `counts[b]` uncommitted tokens of each sequence stay, the others are dropped."""
        if self._given is not None:
            self._given = self._given + torch.as_tensor(counts)
            return
        self.lengths = [old + int(new) for old, new in zip(self.lengths, counts, strict=True)]

    def keep(self, rows: list[int]) -> None:
        """Only these sequences go on, in this order."""
        if rows != list(range(len(rows))):
            for buffer in (*self._keys, *self._values):
                buffer[: len(rows)] = buffer[rows]
        self.lengths = [self.lengths[row] for row in rows]
        self._narrow()

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """The longest committed length."""
        return max(self.lengths, default=0)

    def mark(self) -> None:
        """Tell torch.compile that the number of slots changes, before a forward that reads all of them."""
        for buffer in (*self._keys, *self._values):
            torch._dynamo.mark_dynamic(buffer, 2)

    def buffers(self, layer: int) -> tuple[Tensor, Tensor]:
        """Keys and values of a layer, [B, H, C, D]; for fresh rows of all that are allocated.

        These are written to and not read, and so many there are however many sequences are left.
        """
        keys, values = (self.fresh and self._all) or (self._keys, self._values)
        return keys[layer], values[layer]

    @property
    def places(self) -> tuple[Tensor, Tensor] | None:
        """Rows [B, 1] and slots [B, n] of the next forward, where programs may write them; None elsewhere."""
        return self._slots if self._indexed or self.fresh else None

    @property
    def num_slots(self) -> int:
        """Allocated for each sequence."""
        return self._keys[0].shape[2] if self._keys else 0

    @property
    def num_bytes(self) -> int:
        """Allocated."""
        keys, values = self._all or (self._keys, self._values)
        return sum(buffer.nbytes for buffer in (*keys, *values))

    def _allocate(self, states: Tensor, num_rows: int) -> Tensor:
        slots = -(-max(self._needed, self._reserved) // _STEP) * _STEP
        shape = (num_rows, states.shape[1], slots, states.shape[3])
        self.where = next(_NUMBERS)
        # Zeros, not garbage: masked slots are multiplied by zero weights, and 0 * NaN is NaN.
        return states.new_zeros(shape)

    def _write(self, buffer: Tensor, states: Tensor) -> Tensor:
        assert self._rows is not None
        self._put(buffer, states)
        return buffer[self._rows, :, : self._end]

    def _put(self, buffer: Tensor, states: Tensor) -> None:
        if self._slots is None:
            buffer[self._rows, :, self._start : self._end] = states
        else:
            row, slot = (index.to(buffer.device) for index in self._slots)
            buffer[row, :, slot] = states.transpose(1, 2)


def _staying(path: Tensor, counts: Tensor, lengths: Tensor) -> tuple[Tensor, ...]:
    """A move of no rows: a real one, done twice, would move others."""
    return path, torch.zeros_like(counts), lengths
