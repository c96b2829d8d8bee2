"""Relaxed: the base of acceptors that keep more than the token that the target draws.

One token is drawn at every node, with the noise that plain decoding has at that place, and its node stays,
as in coupled acceptance. A rule lets further nodes stay. Where it lets none, the output is the coupled
acceptor's token for token, at every temperature.

Shapes: B sequences, n drafted nodes, V vocabulary.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import pad
from typing_extensions import override

from harness.config import configurable
from harness.decoding.acceptance import Accepted, Acceptor, choices
from harness.decoding.sampling import TokenSampler
from harness.drafting.draft import Draft


@dataclass(frozen=True)
class Verification:
    """What a rule decides by."""

    logits: Tensor
    """[B, 1+n, V]: the target's, after the pending token and after every node."""
    draft: Draft
    sampler: TokenSampler
    start: Tensor
    """[B] int64: output position of the token after the pending one."""

    @cached_property
    def drawn(self) -> Tensor:
        """[B, 1+n] int64: the token after the pending one and after every node, as plain decoding draws
        it."""
        return choices(self.logits, self.draft, self.sampler, self.start)

    @cached_property
    def probs(self) -> Tensor:
        """[B, 1+n, V]: the target's distributions; at temperature 0, where these are single tokens, those of
        temperature 1."""
        if self.sampler.params.greedy:
            return self.logits.float().softmax(-1)
        return self.sampler.params.probs(self.logits)

    @cached_property
    def scores(self) -> Tensor:
        """[B, 1+n, V]: the logits after temperature, filters and noise, whose largest decides `drawn`."""
        scores = self.sampler.params.process(self.logits)
        if self.sampler.params.greedy:
            return scores
        index = self.start[:, None] + torch.arange(self.draft.width + 1, device=scores.device)
        depths = pad(self.draft.depths, (1, 0))
        noise = self.sampler.gumbel(index)
        return scores + noise.gather(1, depths[..., None].expand(-1, -1, noise.shape[-1]))

    def before(self, values: Tensor) -> Tensor:
        """The values [B, n, ...] of the row that decides each node, from those [B, 1+n, ...] of all rows."""
        rows = torch.arange(len(values), device=values.device)[:, None]
        return values[rows, self.draft.parents + 1]


@configurable
class Relaxed(Acceptor):
    """Keeps the longest path on which every node is the drawn token's, or one that the rule lets stay."""

    lossless: ClassVar[bool] = False
    coupled: ClassVar[bool] = False

    @abstractmethod
    def lets_stay(self, seen: Verification) -> Tensor:
        """[B, n] bool: nodes that may stay where their parents do, whatever was drawn."""

    @override
    def accept(self, logits: Tensor, draft: Draft, sampler: TokenSampler, start: Tensor) -> Accepted:
        """Decide a round. Of paths of one length, the one with the most drawn tokens stays, and of these the
        one that was drafted first."""
        seen = Verification(logits, draft, sampler, start)
        if draft.width == 0:
            return Accepted(draft.size, draft.tokens, seen.drawn[:, 0])
        strict = draft.tokens == seen.before(seen.drawn)
        stands = ((strict | self.lets_stay(seen))[:, None] | ~draft.ancestors).all(-1) & draft.real
        return deepest(draft, stands, strict, seen.drawn)


def deepest(draft: Draft, stands: Tensor, strict: Tensor, drawn: Tensor) -> Accepted:
    """The decision for the deepest of the nodes that stand [B, n] bool with all their ancestors.

    strict [B, n] bool: nodes of drawn tokens. drawn [B, 1+n]: the token after each row.
    """
    n = draft.width
    num_strict = (draft.ancestors & strict[:, None]).sum(-1)
    order = torch.arange(n, 0, -1, device=stands.device)
    score = ((draft.depths * (n + 1) + num_strict) * (n + 1) + order) * stands
    best = score.max(-1)
    rows, found = torch.arange(len(stands), device=stands.device), best.values > 0
    on_path = draft.ancestors[rows, best.indices] & found[:, None]
    path = on_path.to(torch.int8).argsort(dim=-1, descending=True, stable=True)
    last = torch.where(found, best.indices + 1, 0)
    return Accepted(on_path.sum(-1), path, drawn[rows, last])


def within_budget(mass: Tensor, budget: Tensor | float) -> Tensor:
    """[..., k] bool: the longest beginning of `mass` [..., k] whose sum is at most `budget` [...]."""
    limit = budget[..., None] if isinstance(budget, Tensor) else budget
    return mass.double().cumsum(-1) <= limit
