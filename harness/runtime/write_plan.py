"""Write plans: where the next forward writes its keys and values, and what its attention reads.

Shapes: B sequences, n new tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class WritePlan:
    """One forward's use of a `SlotCache`; make it with one of the named constructors.

    ============== ===================== =========================== ===============================
    constructor    rows                  written slots               attention reads
    ============== ===================== =========================== ===============================
    decode         any                   a block where lengths are   the slots in use
                                         equal, else tensors
    static_decode  all                   as `decode`                 every allocated slot, masked
    program        all                   tensors                     every allocated slot, masked
    fresh_prompt   empty ones            tensors                     the new tokens alone
    ============== ===================== =========================== ===============================

    Where every allocated slot is read, forwards over equally many tokens have equal shapes until more slots
    are allocated. Where the slots are tensors, one program or graph serves all lengths.
    """

    rows: slice
    """The sequences that are written."""
    num_slots: int
    """Slots that must be allocated; 0 where the host does not know the lengths and the caller made room."""
    end: int
    """One past the last slot in use by `rows`, for plans that read no more than that."""
    start: int | None = None
    """The first written slot, where one contiguous block serves all rows."""
    slots: tuple[Tensor, Tensor] | None = None
    """Otherwise the written rows [B, 1] and slots [B, n]."""
    reads_all: bool = False
    """Whether attention reads every allocated slot."""
    fresh: bool = False
    """Whether attention may read the new tokens alone."""
    in_program: bool = False
    """Whether the slots are tensors for the sake of a compiled program, which may write them itself."""

    @classmethod
    def decode(
        cls, lengths: Sequence[int], rows: slice, count: int, device: torch.device, ahead: int = 0
    ) -> WritePlan:
        """`count` tokens behind the committed ones of `rows`, and behind `ahead` uncommitted tokens.

        lengths: committed tokens of all sequences. The uncommitted tokens were written by earlier forwards
        and stay readable.
        """
        begins = [length + ahead for length in lengths[rows]]
        end = max(begins) + count
        needed = max(end, *lengths)
        if len(set(begins)) == 1:
            # One length: a contiguous block, no index tensors.
            return cls(rows=rows, num_slots=needed, end=end, start=begins[0])
        slots = _slots(_on_device(lengths, device), rows, count, ahead)
        return cls(rows=rows, num_slots=needed, end=end, slots=slots)

    @classmethod
    def static_decode(cls, lengths: Sequence[int], count: int, device: torch.device) -> WritePlan:
        """`count` tokens behind the committed ones of all sequences; attention reads all slots."""
        rows, end = slice(0, len(lengths)), max(lengths) + count
        if len(set(lengths)) == 1:
            return cls(rows=rows, num_slots=end, end=end, start=lengths[0], reads_all=True)
        slots = _slots(_on_device(lengths, device), rows, count, 0)
        return cls(rows=rows, num_slots=end, end=end, slots=slots, reads_all=True)

    @classmethod
    def program(
        cls, lengths: Sequence[int] | Tensor, count: int, device: torch.device, ahead: int = 0
    ) -> WritePlan:
        """As `static_decode`, for a compiled program or a graph.

        lengths: a tensor [B] where the host does not know them; the caller has called `SlotCache.make_room`.
        """
        rows = slice(0, len(lengths))
        end = 0 if isinstance(lengths, Tensor) else max(lengths) + ahead + count
        base = lengths if isinstance(lengths, Tensor) else _on_device(lengths, device)
        slots = _slots(base, rows, count, ahead)
        return cls(rows=rows, num_slots=end, end=end, slots=slots, reads_all=True, in_program=True)

    @classmethod
    def fresh_prompt(cls, lengths: Sequence[int], rows: slice, count: int, device: torch.device) -> WritePlan:
        """`count` tokens of prompts that begin in `rows`, which are empty; memory is already allocated."""
        slots = _slots(_on_device(lengths, device), rows, count, 0)
        most = max(count, *lengths)
        return cls(rows=rows, num_slots=most, end=count, slots=slots, fresh=True, in_program=True)


def _on_device(lengths: Sequence[int], device: torch.device) -> Tensor:
    return torch.tensor(lengths).to(device, non_blocking=True)


def _slots(base: Tensor, rows: slice, count: int, ahead: int) -> tuple[Tensor, Tensor]:
    row = torch.arange(rows.start, rows.stop, device=base.device)[:, None]
    return row, base[rows, None] + ahead + torch.arange(count, device=base.device)
