"""Training P-EAGLE while it drafts: its last chain, computed again with a gradient.

The pairs before the pending token's stay as they were cached, under the weights of their time. The pending
token's own pair is computed again, and the mask rows behind it.

Shapes: m rows of guesses, k drafted tokens, F width of the target's features, D head dimension, K key heads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from typing_extensions import override

from harness.config import configurable
from harness.drafting.draft import Draft
from harness.drafting.drafter import TargetView
from harness.drafting.online import OnlineDrafter
from methods.peagle.network import PEagleNetwork
from methods.peagle.parallel import ParallelDrafter
from methods.shared.eagle.online import GrowingAttention
from methods.shared.learned import LearnedCopy, draft_vocabulary


@configurable
class OnlineParallel(ParallelDrafter, OnlineDrafter):
    """A `ParallelDrafter` that can be trained while it drafts one sequence."""

    @override
    def bind(self, target: TargetView) -> None:
        super().bind(target)
        self._copy: LearnedCopy[PEagleNetwork] | None = None

    @property
    @override
    def draft_vocabulary(self) -> Tensor | None:
        return draft_vocabulary(self.network.head, self._target.device)

    @override
    def begin_learning(self) -> torch.nn.Module:
        head = self.network.head
        frozen = [] if head.embed_tokens is None else list(head.embed_tokens.parameters())
        raw = head.fc.weight if head.reads_raw_features else None
        self._copy = LearnedCopy(self.network, raw, frozen, features=[self.network.mask_hidden])
        self._learned = self._copy.network
        return self._learned

    @override
    def output_parameters(self) -> Sequence[torch.nn.Parameter]:
        lm_head = self._learned.head.lm_head
        return [] if lm_head is None else list(lm_head.parameters())

    @override
    def recall(self, draft: Draft, rows: Tensor) -> Callable[[], Tensor]:
        assert self._copy is not None, "begin_learning comes first"
        end = self._cache.lengths[0] - 1
        feature, token = self._last_pair
        buffers = [self._cache.buffers(layer) for layer in range(1 + len(self.network.more))]
        return _Recall(
            network=self._learned,
            target=self._target,
            feature=self._copy.features(feature),
            token=token,
            mask=self.mask,
            past=[(keys[:1, :, :end], values[:1, :, :end]) for keys, values in buffers],
            rows=rows,
        )

    @override
    def publish(self) -> None:
        assert self._copy is not None, "begin_learning comes first"
        self._copy.put_back()
        self._target.refresh(self.network)

    @override
    def _forward(self, counts: Sequence[int], num_masks: int) -> Tensor:
        if counts[0] and self._copy is not None:
            # Row 0 alone, because training decodes one sequence at a time.
            last, waiting = counts[0] - 1, self._waiting
            self._last_pair = (
                waiting.features[:1, last : last + 1].clone(),
                waiting.tokens[:1, last : last + 1].clone(),
            )
        return super()._forward(counts, num_masks)


@dataclass(frozen=True)
class _Recall:
    """The guesses after some rows of a chain, with the weights that the network has when it is called."""

    network: PEagleNetwork
    target: TargetView
    feature: Tensor
    """[1, 1, F]: of the token before the pending one."""
    token: Tensor
    """[1, 1] int64: the pending one."""
    mask: int
    past: Sequence[tuple[Tensor, Tensor]]
    """Per layer, keys and values [1, K, c, D] of the pairs before; constant."""
    rows: Tensor

    def __call__(self) -> Tensor:
        """Logits [m, V]."""
        width, begin, device = int(self.rows[-1]) + 1, self.past[0][0].shape[2], self.token.device
        masked = (torch.arange(width, device=device) > 0)[None]
        tokens = torch.where(masked, self.mask, self.token)
        features = torch.nn.functional.pad(self.feature, (0, 0, 0, width - 1))
        positions = torch.arange(begin, begin + width, device=device)[None]
        attention = [GrowingAttention(*part) for part in self.past]
        for layer in attention:
            layer.seen = torch.ones(width, width, dtype=torch.bool, device=device).tril()

        def attend(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            return attention[layer](query, key, value)

        states = self.network(features, tokens, masked, positions, self.target, attend)
        return self.network.logits(states[0, self.rows], self.target)
