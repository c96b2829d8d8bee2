"""Rules that look at one distribution: a drafted token may stay if the target finds it likely enough."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor
from typing_extensions import override

from harness.config import configurable
from harness.decoding.relaxed.rule import Relaxed, Verification


@configurable
class TopK(Relaxed):
    """A token may stay if it is among the k best of the target.

    The best are those after temperature, filters and noise, the order in which plain decoding would draw k
    different tokens. So k = 1 is strict at every temperature, and at temperature 0 it is the usual top-k.
    """

    k: int = Field(default=2, ge=1)
    """1 is strict."""

    @property
    @override
    def name(self) -> str:
        return f"top_k {self.k}"

    @override
    def lets_stay(self, seen: Verification) -> Tensor:
        if self.k == 1:
            return torch.zeros_like(seen.draft.real)
        scores = seen.before(seen.scores)
        own = scores.gather(-1, seen.draft.tokens[..., None])
        # A filtered token has no score, and never stays.
        return ((scores > own).sum(-1) < self.k) & own[..., 0].isfinite()


@configurable
class Typical(Relaxed):
    """A token may stay if p > min(epsilon, alpha exp(-H)), with H the entropy of the target there.

    Typical acceptance of Medusa (Cai et al. 2024, arXiv 2401.10774, section 3.3.1). At temperature 0, p and H
    are those of temperature 1.
    """

    epsilon: float = Field(default=0.09, gt=0, le=1)
    """Where the target is certain. 1 is strict, with any alpha that is large enough for H."""
    alpha: float = Field(default=0.3, gt=0)
    """Where it is not; infinite (`.inf` in YAML, `inf` on the command line) together with epsilon 1 is
    strict."""

    @property
    @override
    def name(self) -> str:
        return f"typical {self.epsilon:g}, {self.alpha:g}"

    @override
    def lets_stay(self, seen: Verification) -> Tensor:
        probs = seen.probs
        entropy = -torch.special.xlogy(probs, probs).sum(-1)
        least = (self.alpha * (-entropy).exp()).clamp(max=self.epsilon)
        own = seen.before(probs).gather(-1, seen.draft.tokens[..., None])[..., 0]
        return own > seen.before(least)


@configurable
class AcceptAll(Relaxed):
    """Every token may stay: what was drafted is what is said.

    For models that predict several tokens themselves, whose forward over a draft then only continues it.
    """

    @property
    @override
    def name(self) -> str:
        return "all"

    @override
    def lets_stay(self, seen: Verification) -> Tensor:
        return seen.draft.real
