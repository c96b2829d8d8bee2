"""Pairs of true features and next tokens that wait for the next draft.

Shapes: B sequences, m pairs, F width of the target's features.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad


class Waiting:
    """The pairs of every sequence: features [B, m, F], tokens [B, m] int64 and their counts.

    Pairs at and past a sequence's count are arbitrary.
    """

    def __init__(self, num_rows: int, like: Tensor) -> None:
        """like: [1, F], whose dtype and device the features take."""
        self.features = like.new_zeros(num_rows, 0, like.shape[-1])
        self.tokens = torch.zeros(num_rows, 0, dtype=torch.int64, device=like.device)
        self.counts = [0] * num_rows

    def add(self, features: Tensor, tokens: Sequence[Sequence[int]]) -> None:
        """Add pairs behind those of each sequence; as many of features [B, m, F] as there are tokens."""
        for row, own in enumerate(tokens):
            self.put(row, features[row, : len(own)], own)

    def put(self, row: int, features: Tensor, tokens: Sequence[int]) -> None:
        """Add pairs, features [m, F] and tokens [m], behind those of one sequence."""
        begin = self.counts[row]
        end = begin + len(tokens)
        more = max(end - self.tokens.shape[1], 0)
        if more:
            self.features, self.tokens = pad(self.features, (0, 0, 0, more)), pad(self.tokens, (0, more))
        self.features[row, begin:end] = features.to(self.features)
        self.tokens[row, begin:end] = torch.tensor(list(tokens)).to(self.tokens)
        self.counts[row] = end

    def drop(self, counts: Sequence[int]) -> None:
        """Forget the first `counts[b]` pairs of each sequence."""
        left = [have - gone for have, gone in zip(self.counts, counts, strict=True)]
        for row, (gone, rest) in enumerate(zip(counts, left, strict=True)):
            if rest:
                self.features[row, :rest] = self.features[row, gone : gone + rest].clone()
                self.tokens[row, :rest] = self.tokens[row, gone : gone + rest].clone()
        most = max(left)
        self.features, self.tokens = self.features[:, :most], self.tokens[:, :most]
        self.counts = left

    def keep(self, rows: list[int]) -> None:
        """Continue with these sequences only, in this order."""
        self.features, self.tokens = self.features[rows], self.tokens[rows]
        self.counts = [self.counts[row] for row in rows]
