"""Pairs that wait for a draft head: true features of the target, each with the token after it.

Shapes: B sequences, m pairs, F width of the target's features.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, cat
from torch.nn.utils.rnn import pad_sequence

from harness.drafting.drafter import TargetView


class Pairs(NamedTuple):
    """The pairs of every sequence."""

    features: Tensor
    """[B, m, F]."""
    tokens: Tensor
    """[B, m] int64."""
    counts: list[int]
    """Pairs of each sequence, at most m; what is behind them is arbitrary."""

    @classmethod
    def random(
        cls, num_rows: int, count: int, features: tuple[int, torch.dtype], target: TargetView
    ) -> Pairs:
        """The same pairs of each sequence, as different as can be. features: their width and type."""
        size, dtype = features
        made = torch.randn(count, size, generator=torch.Generator().manual_seed(0)).to(target.device, dtype)
        tokens = torch.arange(count, device=target.device) % target.vocab_size
        return cls(made.repeat(num_rows, 1, 1), tokens.repeat(num_rows, 1), [count] * num_rows)

    def followed_by(self, more: Pairs) -> Pairs:
        """The pairs of every sequence, then more of them."""
        rows = zip(self._rows(), more._rows(), strict=True)
        return _padded([(cat([one[0], two[0]]), cat([one[1], two[1]])) for one, two in rows])

    def latest(self, most: int, protected: Sequence[bool]) -> Pairs:
        """At most `most` pairs of every sequence that has more than twice as many and is not protected.

        The rule of the router in SAM Decoding and SpecTTS-Bench (`n_predicts`), where a sequence is protected
        while its pairs begin with the prompt.
        """
        excess = [
            count - most if count > 2 * most and not whole else 0
            for count, whole in zip(self.counts, protected, strict=True)
        ]
        if not any(excess):
            return self
        rows = zip(self._rows(), excess, strict=True)
        return _padded([(features[drop:], tokens[drop:]) for (features, tokens), drop in rows])

    def last(self) -> Pairs:
        """The last pair of every sequence."""
        place = torch.tensor(self.counts).to(self.tokens.device, non_blocking=True)[:, None] - 1
        features = self.features.take_along_dim(place[..., None], 1)
        return Pairs(features, self.tokens.take_along_dim(place, 1), [1] * len(self.counts))

    def _rows(self) -> list[tuple[Tensor, Tensor]]:
        """Features [m, F] and tokens [m] of each sequence alone."""
        return [
            (features[:count], tokens[:count])
            for features, tokens, count in zip(self.features, self.tokens, self.counts, strict=True)
        ]


def _padded(rows: Sequence[tuple[Tensor, Tensor]]) -> Pairs:
    features, tokens = (pad_sequence(list(part), batch_first=True) for part in zip(*rows, strict=True))
    return Pairs(features, tokens, [len(row[1]) for row in rows])
