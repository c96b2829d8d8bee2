"""LANTERN: a token may stay where the target drew one of its neighbours in the space of embeddings.

Jang et al. 2024 (arXiv 2410.03355) for models of image tokens, whose codebook holds many near-equal entries.
A drafted token x stands for itself and for its nearest neighbours, as far as the target gives these together
at most `delta`; LANTERN++ (arXiv 2502.06352) limits them by (ratio - 1) p(x) instead.

Where this departs from their code: one draw per node decides all siblings, so x stays if the token drawn is
x or one of those neighbours, which is as probable as in their rule for the first sibling; the budget of a
later sibling refers to the distribution of its node, not to what earlier siblings left of it. Neighbours are
those of the target's input embedding.

Shapes: B sequences, n drafted nodes, V vocabulary, k neighbours, H hidden size.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor
from typing_extensions import override

from harness.config import configurable
from harness.decoding.relaxed.rule import Relaxed, Verification, within_budget
from harness.drafting.drafter import TargetView


@configurable
class Lantern(Relaxed):
    """Lets tokens stand for their neighbours."""

    delta: float = Field(default=0.1, ge=0, le=1)
    """Most probability of the neighbours that a token stands for; 0 is strict."""
    ratio: float | None = Field(default=None, ge=1)
    """Instead of delta, (ratio - 1) times the token's own probability; 1 is strict."""
    num_neighbours: int = Field(default=1000, ge=1)
    """Nearest ones that are looked at."""

    @property
    @override
    def name(self) -> str:
        return f"lantern {self.delta:g}" if self.ratio is None else f"lantern ratio {self.ratio:g}"

    @override
    def bind(self, target: TargetView) -> None:
        """Keep the embedding."""
        ids = torch.arange(target.vocab_size, device=target.device)
        self._vectors = target.embed(ids).float()
        self._squares = self._vectors.pow(2).sum(-1)
        self._known: dict[int, Tensor] = {}

    @override
    def lets_stay(self, seen: Verification) -> Tensor:
        draft, probs = seen.draft, seen.before(seen.probs)
        # [B, n, k]
        near = torch.stack([self._neighbours(token) for token in draft.tokens.flatten().tolist()])
        near = near.view(*draft.tokens.shape, -1)
        budget: Tensor | float = self.delta
        if self.ratio is not None:
            own = probs.gather(-1, draft.tokens[..., None])[..., 0]
            budget = (self.ratio - 1) * own.double()
        allowed = within_budget(probs.gather(-1, near), budget)
        return ((near == seen.before(seen.drawn)[..., None]) & allowed).any(-1)

    def _neighbours(self, token: int) -> Tensor:
        """[k] int64: the other tokens, the nearest first; of equally near ones the smaller id."""
        if token not in self._known:
            distance = self._squares - 2 * (self._vectors @ self._vectors[token])
            distance[token] = torch.inf
            count = min(self.num_neighbours, len(distance) - 1)
            self._known[token] = distance.sort(stable=True).indices[:count]
        return self._known[token]
