"""Which rows SpecBlock's network reads: those of its training, or those of the release's decoding.

A row is a feature of the target and a token. In training, row i has feature i and token i + 1 and stands at
position i. The release's decoding feeds other rows (trained networks guess worse from them):

* the last row of a prompt twice, at positions of their own;
* after accepted guesses, every feature but the last with the token after its next one, and no row at the
  position before the first;
* after none, a row in place of the one before, which never comes back.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import pad
from typing_extensions import override

from harness.config import configurable
from harness.drafting.drafter import HiddenTap, Outcome
from methods.shared.eagle.steps import CachedSteps
from methods.shared.one_call.drafter import OneCallDrafter


@configurable
class RowsDrafter(OneCallDrafter):
    """A `OneCallDrafter` that can feed the rows of the release."""

    rows: Literal["aligned", "released"] = "aligned"
    """The rows of training, or those of the release's decoding, to compare."""

    @override
    def use(self, network: torch.nn.Module, taps: tuple[HiddenTap, ...], steps: CachedSteps) -> None:
        super().use(network, taps, steps)
        if self.rows == "released" or self._target.device.type == "cpu":
            # Positions that skip are computed on the host; on a CPU blocks look at values there as well. So
            # a round cannot be captured.
            self._round = None

    @override
    def reset(self, num_rows: int) -> None:
        super().reset(num_rows)
        self._starts, self._ends = [0] * num_rows, [0] * num_rows

    @override
    def observe(self, outcome: Outcome) -> None:
        if self.rows == "released" and self._waits and outcome.rows is None:
            # Rows of two rounds do not have consecutive positions.
            self.new_growth().feed(self._features, self._tokens, self._counts)
            self._waits = False
        super().observe(outcome)
        if self.rows == "released" and outcome.rows is None:
            self._misalign()

    @override
    def keep(self, rows: Sequence[int]) -> None:
        super().keep(rows)
        self._starts, self._ends = [self._starts[row] for row in rows], [self._ends[row] for row in rows]

    @override
    def _begin(self, row: int, features: Tensor, tokens: Tensor) -> None:
        if self.rows == "aligned":
            super()._begin(row, features, tokens)
            return
        self._starts[row] = 0
        super()._begin(row, torch.cat([features, features[-1:]]), torch.cat([tokens, tokens[-1:]]))
        self._starts[row], self._ends[row] = len(tokens), len(tokens) + 1

    def skipped(self, row: int | None) -> list[int] | None:
        """By how much the position of the next row of each fed sequence exceeds the number of rows before it.

        row: see `new_growth`. None stands for nothing.
        """
        if self.rows == "aligned":
            return None
        slots, lengths = self._steps.slots_per_row, self._cache.lengths
        wanted = range(len(lengths)) if row is None else [row]
        return [self._starts[one] - lengths[one] // slots for one in wanted]

    def _misalign(self) -> None:
        """Turn the rows of a prompt or round into those that the release feeds."""
        if not all(self._ends):
            self._features, self._tokens = pad(self._features, (0, 0, 0, 1)), pad(self._tokens, (0, 1))
        for row, count in enumerate(self._counts):
            end = self._ends[row]
            if not end:
                self._features[row, count] = self._features[row, count - 1]
                self._tokens[row, count] = self._tokens[row, count - 1]
                self._counts[row] = self._ends[row] = count + 1
                self._starts[row] = 0
            elif count > 1:
                self._tokens[row, : count - 1] = self._tokens[row, 1:count].clone()
                self._starts[row], self._ends[row] = end + 1, end + 1 + count
            else:
                self._cache.lengths[row] -= self._steps.slots_per_row
                self._starts[row] = end
