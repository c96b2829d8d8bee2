"""One round of FastEagle: one call feeds true rows to all layers and gives the guesses of all levels.

Shapes: B sequences, N levels, k nodes, c children, E nodes expanded so far, H hidden size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from typing_extensions import override

from harness.drafting.drafter import TargetView
from harness.drafting.trees import Proposals
from harness.runtime.cache import SlotCache
from methods.fasteagle.network import CascadeNetwork
from methods.shared.draft_vocabulary import DraftVocabulary
from methods.shared.one_call.growth import OneCallGrowth
from methods.shared.one_call.steps import SIZES, OneCallSteps


class CascadeSteps(OneCallSteps):
    """The network behind the caches of its layers, as `CascadeGrowth` runs it."""

    def __init__(self, target: TargetView, network: CascadeNetwork, cache: SlotCache | None = None) -> None:
        """cache: see `CachedSteps`."""
        super().__init__(target, network, cache)
        self.network, self.vocabulary = network, DraftVocabulary(network, target)
        self.vocabulary.prepare()
        self.further_modules = self.vocabulary.modules
        self._guesses = target.program(self._guess, (*SIZES, len(network.layers))) if cache is None else None

    def guess(self, outputs: Tensor, num_children: int) -> Proposals:
        """The likeliest tokens [B, N, c] of every level, from the outputs [B, N, H] of all layers."""
        compiled = self._guesses
        if compiled is None or not compiled.serves(*outputs.shape[:2]):
            return Proposals(*self._guess(outputs, num_children))
        return Proposals(*compiled(outputs.contiguous(), constants=[num_children]))

    def _guess(self, outputs: Tensor, num_children: int) -> tuple[Tensor, Tensor]:
        network = self.network
        levels = [network.normed(outputs[:, level], level) for level in range(outputs.shape[1])]
        logits = self.vocabulary.logits(torch.stack(levels, dim=1)).float().to(outputs.device)
        best = logits.topk(num_children, dim=-1)
        # Log-probabilities in float32 and at most 0, so that no child outscores its parent.
        log_probs = best.values - logits.logsumexp(-1, keepdim=True)
        return network.target_ids(best.indices), log_probs


class CascadeGrowth(OneCallGrowth):
    """The `Grower` of one round. A level's guesses do not depend on the node that they follow."""

    def __init__(self, steps: CascadeSteps, row: int | None = None) -> None:
        """row: see `OneCallGrowth`."""
        super().__init__(steps, row)
        self._steps = steps

    @override
    def feed(self, features: Tensor, tokens: Tensor, counts: Sequence[int] | Tensor) -> Tensor:
        found = super().feed(features, tokens, counts)
        self.rewind()
        return found

    def rewind(self) -> None:
        """Forget the nodes that were expanded; what was fed stays."""
        num_rows, device = self.outputs.shape[0], self.outputs.device
        self._depths = torch.zeros(num_rows, 1, dtype=torch.int64, device=device)
        self._known: Proposals | None = None

    def levels(self, num_children: int) -> Proposals:
        """The likeliest tokens [B, N, c] of every level."""
        if self._known is None or self._known.tokens.shape[-1] != num_children:
            self._known = self._steps.guess(self.outputs[:, 0], num_children)
        return self._known

    def start(self, num_children: int) -> Proposals:
        """The root's best children; see `Grower`."""
        tokens, log_probs = self.levels(num_children)
        return Proposals(tokens[:, 0], log_probs[:, 0])

    def expand(self, tokens: Tensor, parents: Tensor, num_children: int) -> Proposals:
        """The best children of nodes; see `Grower`. After the last level they have the probability 0."""
        guesses, log_probs = self.levels(num_children)
        rows = torch.arange(len(tokens), device=tokens.device)[:, None]
        depths = self._depths[rows, parents + 1] + 1
        self._depths = torch.cat([self._depths, depths], dim=1)
        last = guesses.shape[1] - 1
        level = depths.clamp(max=last)
        scores = log_probs[rows, level].masked_fill((depths > last)[..., None], -math.inf)
        return Proposals(guesses[rows, level], scores)
