"""Packing: dialogues are laid one after the other into rows, in an order that depends on the row number
alone."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence

from harness.training.dialogues import Sample


class Rows:
    """Samples, none longer than a row, packed in an order that depends on seed and epoch alone."""

    def __init__(self, samples: Sequence[Sample], row_tokens: int, seed: int) -> None:
        self._samples = list(samples)
        self._row_tokens, self._seed = row_tokens, seed
        self._epoch, self._rows = -1, list[list[Sample]]()
        self._num_rows: list[int] = []

    def row(self, number: int) -> list[Sample]:
        """The samples of row `number`, counted over all epochs."""
        for epoch in itertools.count():
            if epoch == len(self._num_rows):
                self._num_rows.append(len(self._packed(epoch)))
            if number < self._num_rows[epoch]:
                return self._packed(epoch)[number]
            number -= self._num_rows[epoch]
        raise AssertionError

    def _packed(self, epoch: int) -> list[list[Sample]]:
        if epoch != self._epoch:
            order = list(range(len(self._samples)))
            random.Random(f"{self._seed}:{epoch}").shuffle(order)
            self._rows = list(pack([self._samples[place] for place in order], self._row_tokens))
            self._epoch = epoch
        return self._rows


def pack(samples: Sequence[Sample], row_tokens: int) -> Iterator[list[Sample]]:
    """Lay samples one after the other; a new row begins where the next sample does not fit."""
    row: list[Sample] = []
    size = 0
    for sample in samples:
        if row and size + len(sample.ids) > row_tokens:
            yield row
            row, size = [], 0
        row.append(sample)
        size += len(sample.ids)
    if row:
        yield row
