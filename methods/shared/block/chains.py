"""What drafters of whole chains share: the noise that tokens are drawn with, and the draft made of them.

Shapes: B sequences, k drafted tokens, V vocabulary.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from harness.drafting.draft import Draft


class Noise:
    """Uniform numbers for drawing drafts, a function of a sequence's number and of its length.

    Sequences have numbers of their own: if the same text always drafted the same token, that token would be
    kept too often by the p/q rule.
    """

    def __init__(self, seed: int) -> None:
        self._seed, self._begun = seed, 0
        self._numbers: list[int] = []

    def reset(self, num_rows: int) -> None:
        """Begin `num_rows` new sequences."""
        self._numbers = [self._next() for _ in range(num_rows)]

    def renew(self, row: int) -> None:
        """A new sequence takes this row."""
        self._numbers[row] = self._next()

    def keep(self, rows: Sequence[int]) -> None:
        """Continue with these sequences only."""
        self._numbers = [self._numbers[row] for row in rows]

    def draw(self, lengths: Sequence[int], count: int) -> Tensor:
        """Numbers [B, count] in [0, 1), float64, for sequences of these lengths."""
        rows = []
        for number, length in zip(self._numbers, lengths, strict=True):
            text = np.asarray([number, length], dtype=np.int64).tobytes()
            digest = hashlib.blake2b(text, digest_size=8, key=self._seed.to_bytes(8, "little")).digest()
            generator = np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))
            rows.append(generator.random(count))
        return torch.from_numpy(np.stack(rows))

    def _next(self) -> int:
        self._begun += 1
        return self._begun


def chain_of(tokens: Tensor, likely: Tensor, probs: Tensor | None, least: float = 0.0) -> Draft:
    """Chains of tokens [B, k] that end before the first one whose probability of being kept is below `least`.

    likely: [B, k], that probability, given that the tokens before are kept. probs: [B, k, V].
    """
    size = torch.full((len(tokens),), tokens.shape[1], device=tokens.device)
    if least:
        size = (likely >= least).long().cumprod(-1).sum(-1)
        width = int(size.max())
        tokens, likely = tokens[:, :width], likely[:, :width]
        probs = None if probs is None else probs[:, :width]
    return Draft(
        tokens=tokens,
        parents=Draft.chain(tokens, size).parents,
        size=size,
        is_chain=True,
        confidence=likely.cumprod(-1),
        probs=probs,
    )
