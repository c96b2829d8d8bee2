"""The step of a `OneCallNetwork` behind a cache.

Shapes: B sequences, r rows, K guesses of a row, H hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from harness.drafting.drafter import TargetView
from harness.runtime.attention import grouped
from harness.runtime.cache import SlotCache
from methods.shared.eagle.heads.layer import Attend
from methods.shared.eagle.steps import CachedSteps
from methods.shared.one_call.network import OneCallNetwork

SIZES = (1, 4, 8)
"""Rows of pairs that are compiled for on a CPU."""


class OneCallSteps(CachedSteps):
    """The network behind a cache, as `OneCallGrowth` runs it."""

    def __init__(
        self,
        target: TargetView,
        network: OneCallNetwork,
        cache: SlotCache | None = None,
        sizes: Sequence[int] = SIZES,
        slots_per_row: int = 1,
    ) -> None:
        """cache, sizes, slots_per_row: see `CachedSteps`."""
        super().__init__(target, self._block, cache, sizes, slots_per_row)
        self._target, self._network = target, network

    def condition(self, features: Tensor) -> Tensor:
        """Conditions [B, r, H] from features [B, r, F]; see `OneCallNetwork.condition`."""
        return self._network.condition(features)

    def run(
        self,
        rows: slice,
        tokens: Tensor,
        conditions: Tensor,
        positions: Tensor,
        tree: Tensor,
        again: int = 0,
        plain: bool = False,
    ) -> Tensor:
        """Run r rows of the sequences `rows`, which gives outputs [B, r, K, H].

        tokens [B, r] int64, conditions [B, r, H], positions [B, r] int64: see `OneCallNetwork`. tree, again,
        plain: see `CachedSteps.forward`.
        """
        inputs = (tokens.contiguous(), conditions, positions.contiguous())
        outputs: Tensor = self.forward(rows, inputs, tree, again, plain)
        return outputs

    def _block(
        self, tokens: Tensor, conditions: Tensor, positions: Tensor, mask: Tensor, cache: SlotCache
    ) -> Tensor:
        network = self._network
        embed = network.embedding or self._target.embed
        embedded = embed(tokens).to(conditions.dtype)

        def attend(layer: int) -> Attend:
            def attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
                keys, values = cache.update(key, value, layer)
                return grouped(network, query, keys, values, mask)[0]

            return attention

        outputs: Tensor = network(conditions, embedded, positions, attend)
        return outputs
