"""RecordedGrower: a drafter of recorded tables, in the place of a head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from harness.drafting.trees import Proposals

_NUM_LAST = 2
"""Tokens of a path that its next token depends on."""


class RecordedGrower:
    """The `Grower` of a case: guesses by the last two tokens of a path; of equal ones the smaller id first.

    Shapes: B sequences, k nodes, c children.
    """

    def __init__(self, tables: Sequence[Mapping[str, Sequence[float]]], context: float) -> None:
        """tables: per sequence, the probabilities [V] after each path, whose tokens are joined by commas."""
        self.context = context
        self._tables = [
            {tuple(int(token) for token in path.split(",") if token): row for path, row in table.items()}
            for table in tables
        ]
        self._paths: list[list[tuple[int, ...]]] = [[] for _ in tables]

    def start(self, num_children: int) -> Proposals:
        """Children [B, c] of the root."""
        tokens, log_probs = self._best([[()] for _ in self._tables], num_children)
        return Proposals(tokens[:, 0], log_probs[:, 0])

    def expand(self, tokens: Tensor, parents: Tensor, num_children: int) -> Proposals:
        """Children [B, k, c] of nodes [B, k]; see `Grower`."""
        grown = [
            [(*(known[parent] if parent >= 0 else ()), token) for token, parent in zip(*nodes, strict=True)]
            for known, *nodes in zip(self._paths, tokens.tolist(), parents.tolist(), strict=True)
        ]
        for known, new in zip(self._paths, grown, strict=True):
            known.extend(new)
        return self._best(grown, num_children)

    def _best(self, paths: Sequence[Sequence[tuple[int, ...]]], num_children: int) -> Proposals:
        rows = [
            [table[path[-_NUM_LAST:]] for path in own] for table, own in zip(self._tables, paths, strict=True)
        ]
        found = torch.tensor(rows, dtype=torch.float64).sort(dim=-1, descending=True, stable=True)
        return Proposals(found.indices[..., :num_children], found.values[..., :num_children].log())
