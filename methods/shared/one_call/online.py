"""Training a network of several guesses while it drafts: its last guesses, computed again with a gradient.

The rows that the network has read stay as they were cached, under the weights of their time. Only the pending
token's own row is computed again, and whatever was guessed behind it.

Shapes: m rows of guesses, K guesses of a row, H hidden size, F width of the target's features, D head
dimension, V draft vocabulary.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from harness.config import configurable
from harness.drafting.draft import Draft
from harness.drafting.drafter import TargetView
from harness.drafting.online import OnlineDrafter
from methods.shared.eagle.online import GrowingAttention
from methods.shared.learned import LearnedCopy, draft_vocabulary
from methods.shared.one_call.drafter import OneCallDrafter
from methods.shared.one_call.network import OneCallNetwork


@dataclass(frozen=True)
class LastRow:
    """The row of the pending token, to be computed with the weights that `network` has by then."""

    network: OneCallNetwork
    target: TargetView
    feature: Tensor
    """[1, 1, F]: of the token before the pending one."""
    token: Tensor
    """[1, 1] int64: the pending one."""
    position: int
    past: Sequence[tuple[Tensor, Tensor]]
    """Per layer, keys and values [1, kv, n, D] of the rows before; constant."""

    def outputs(self, seen: Tensor) -> tuple[Tensor, list[GrowingAttention]]:
        """Outputs [1, 1, K, H], and the attention of further rows, per layer.

        seen [s, s] bool: which of the row's own slots each of them sees.
        """
        attention = [GrowingAttention(*part) for part in self.past]
        condition = self.network.condition(self.feature)
        return self.run(attention, condition, self.token, seen), attention

    def run(
        self, attention: Sequence[GrowingAttention], conditions: Tensor, tokens: Tensor, seen: Tensor
    ) -> Tensor:
        """Outputs [1, r, K, H] of r rows at the pending token's position.

        conditions [1, r, H], tokens [1, r]: what the rows read.

        seen [r * s, e + r * s] bool: of the slots since the pending token's row.
        """
        embed = self.network.embedding or self.target.embed
        for layer in attention:
            layer.seen = seen
        outputs: Tensor = self.network(
            conditions,
            embed(tokens).to(conditions.dtype),
            torch.full_like(tokens, self.position),
            attention.__getitem__,
        )
        return outputs


@configurable
class OnlineOneCall(OneCallDrafter, OnlineDrafter):
    """A `OneCallDrafter` that can be trained while it drafts one sequence."""

    @abstractmethod
    def recalled(self, last: LastRow, draft: Draft, rows: Tensor) -> Callable[[], Tensor]:
        """The function that `recall` returns; last: the pending token's row."""

    @property
    def last_position(self) -> int:
        """Where the pending token's row stands."""
        return self._cache.lengths[0] // self._steps.slots_per_row - 1

    @property
    @override
    def draft_vocabulary(self) -> Tensor | None:
        return draft_vocabulary(self.network, self._target.device)

    @override
    def begin_learning(self) -> torch.nn.Module:
        network = self.network
        frozen = [] if network.embedding is None else list(network.embedding.parameters())
        self._copy = LearnedCopy(network, network.feature_layer.weight, frozen)
        self._learned: Any = self._copy.network
        return self._copy.network

    @override
    def recall(self, draft: Draft, rows: Tensor) -> Callable[[], Tensor]:
        end, last = self._cache.lengths[0] - self._steps.slots_per_row, self._counts[0] - 1
        layers = range(len(self._learned.layers))
        buffers = [self._cache.buffers(layer) for layer in layers]
        row = LastRow(
            network=self._learned,
            target=self._target,
            feature=self._copy.features(self._features[:1, last : last + 1]),
            token=self._tokens[:1, last : last + 1],
            position=self.last_position,
            past=[(keys[:1, :, :end], values[:1, :, :end]) for keys, values in buffers],
        )
        return self.recalled(row, draft, rows)

    @override
    def publish(self) -> None:
        self._copy.put_back()
        self._target.refresh(self.network)
