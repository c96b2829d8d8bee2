"""The part of a round that all drafters with a `OneCallNetwork` share: true rows enter its cache.

Shapes: B sequences, m pairs, K guesses of a row, F width of the target's features, H hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from methods.shared.one_call.steps import OneCallSteps

_CHUNK = 256
"""Rows of a prompt that are fed at once; their mask is quadratic."""


class OneCallGrowth:
    """Feeds true rows; a subclass grows trees from the outputs of the last one."""

    outputs: Tensor
    """[B, 1, K, H]: of the last row that was fed."""
    base: Tensor
    """[B] int64: its position."""

    def __init__(
        self, steps: OneCallSteps, row: int | None = None, skipped: Sequence[int] | None = None
    ) -> None:
        """
        row: the only sequence of the cache that is fed and grown; None: all of them. skipped: of each fed
        sequence, by how much the position of its next row exceeds the number of rows before it; None: by
        nothing.
        """
        self._fed_by, self._cache, self._row, self._skipped = steps, steps.cache, row, skipped

    def begin(self, num_rows: int) -> None:
        """Forget the cache."""
        self._cache.clear(num_rows)

    def padded(self, features: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Features and tokens of pairs, with rows added up to a number that is compiled for."""
        more = self._fed_by.size_for(*tokens.shape) - tokens.shape[1]
        if more and self._row is None:
            return pad(features, (0, 0, 0, more)), pad(tokens, (0, more))
        return features, tokens

    def feed(self, features: Tensor, tokens: Tensor, counts: Sequence[int] | Tensor) -> Tensor:
        """Take in true pairs: features [B, m, F], and tokens [B, m] that each follow their feature.

        The first `counts[b]` rows of each sequence stay in the cache; counts is a tensor [B] where the host
        does not know them. Returns the outputs [B, m, K, H] of the rows.
        """
        features, tokens = self.padded(features, tokens)
        slots, device = self._fed_by.slots_per_row, tokens.device
        first = self._cache.base(device)[self._rows] // slots
        if self._skipped is not None:
            first = first + torch.tensor(list(self._skipped)).to(device, non_blocking=True)
        found = self._run(self._fed_by.condition(features), tokens, first)
        if isinstance(counts, Tensor):
            self._cache.advance(counts * slots)
            last = counts - 1
        else:
            fed = [0] * len(self._cache.lengths)
            fed[self._rows] = [count * slots for count in counts]
            self._cache.advance(fed)
            last = torch.tensor(list(counts)).to(device, non_blocking=True) - 1
        self.base = first + last
        self.outputs = found[torch.arange(len(tokens), device=device), last][:, None]
        return found

    def _run(self, conditions: Tensor, tokens: Tensor, first: Tensor) -> Tensor:
        """Outputs [B, m, K, H] of rows whose positions begin at `first` [B]."""
        (num_rows, num_pairs), slots = tokens.shape, self._fed_by.slots_per_row
        pieces = []
        # No `range` over a number that a program does not know.
        for start in range(0, num_pairs, _CHUNK) if num_pairs > _CHUNK else (0,):
            here = slice(start, start + _CHUNK)
            count = tokens[:, here].shape[1]
            shape = (count * slots, (start + count) * slots)
            behind = torch.ones(shape, dtype=torch.bool, device=tokens.device).tril(start * slots)
            outputs = self._fed_by.run(
                self._rows,
                tokens[:, here],
                conditions[:, here],
                first[:, None] + torch.arange(start, start + count, device=tokens.device),
                behind.expand(num_rows, -1, -1),
                # The remainder of a long prompt may have any length, and so has the prompt of one sequence.
                plain=num_pairs > _CHUNK or self._row is not None,
            )
            pieces.append(outputs)
        return torch.cat(pieces, dim=1) if len(pieces) > 1 else pieces[0]

    @property
    def context(self) -> float:
        """Cached rows per sequence, which are as many as tokens that the target has cached."""
        lengths = self._cache.lengths[self._rows]
        return sum(lengths) / len(lengths) / self._fed_by.slots_per_row

    @property
    def _rows(self) -> slice:
        return slice(0, len(self._cache.lengths)) if self._row is None else slice(self._row, self._row + 1)
