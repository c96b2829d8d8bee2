"""The steps of SpecBlock's network behind a cache: blocks over new rows, and the best children of their
slots.

Shapes: B sequences, r rows, K slots, c children, E slots behind the cached ones, H hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from harness.drafting.drafter import TargetView
from harness.runtime.attention import grouped
from harness.runtime.cache import SlotCache
from methods.shared.eagle.heads.layer import Attend
from methods.shared.eagle.steps import CachedSteps
from methods.specblock.network import BlockNetwork

_SIZES = (1, 4, 8)
"""Rows of pairs that are compiled for on a CPU; the tree adds those that it starts blocks from."""


class Guesses(NamedTuple):
    """What the slots of blocks guess."""

    tokens: Tensor
    """[B, r, K, c] int64: the best tokens after each slot's predecessor, best first, as ids of the target."""
    log_probs: Tensor
    """[B, r, K, c] float32."""
    classes: Tensor
    """[B, r, K] int64: the estimated class of rank of the target's token, 0 to 3."""


class BlockSteps(CachedSteps):
    """The network behind a cache with K slots per position, as `BlockGrowth` runs it."""

    def __init__(
        self,
        target: TargetView,
        network: BlockNetwork,
        cache: SlotCache | None = None,
        rank_topk: int = 20,
        tree_sizes: Sequence[int] = (),
    ) -> None:
        """
        cache: see `CachedSteps`. rank_topk: see `rank_features`. tree_sizes: further numbers of rows to
        compile for.
        """
        sizes = sorted({*_SIZES, *tree_sizes})
        super().__init__(target, self._block, cache, sizes, network.shape.num_slots)
        self._target, self.network, self._rank_topk = target, network, rank_topk
        self._guesses = target.program(self._guess, sizes) if cache is None else None

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
        """Run blocks from r rows of the sequences `rows`, which gives outputs [B, r, K, H].

        tokens [B, r] int64, conditions [B, r, H], positions [B, r] int64: see `BlockNetwork`. tree
        [B, r * K, E + r * K], again, plain: see `CachedSteps.forward`.
        """
        inputs = (tokens.contiguous(), conditions, positions.contiguous())
        outputs: Tensor = self.forward(rows, inputs, tree, again, plain)
        return outputs

    def guess(self, states: Tensor, num_children: int) -> Guesses:
        """What slots with the outputs [B, r, K, H] guess."""
        compiled = self._guesses
        if compiled is None or not compiled.serves(*states.shape[:2]):
            return Guesses(*self._guess(states, num_children))
        return Guesses(*compiled(states.contiguous(), constants=[num_children]))

    def _block(
        self, tokens: Tensor, conditions: Tensor, positions: Tensor, mask: Tensor, cache: SlotCache
    ) -> Tensor:
        network = self.network
        embed = network.input_layer.embed_tokens or self._target.embed
        embedded = embed(tokens).to(conditions.dtype)

        def attend(layer: int) -> Attend:
            def attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
                keys, values = cache.update(key, value, layer)
                return grouped(network, query, keys, values, mask)[0]

            return attention

        outputs: Tensor = network(conditions, embedded, positions, attend)
        return outputs

    def _guess(self, states: Tensor, num_children: int) -> tuple[Tensor, Tensor, Tensor]:
        network = self.network
        logits = network.logits(states).float()
        best = logits.topk(num_children, dim=-1)
        # Log-probabilities in float32 and at most 0, so that no child outscores its parent.
        log_probs = best.values - logits.logsumexp(-1, keepdim=True)
        classes = network.rank_logits(states, logits, self._rank_topk).argmax(-1)
        return network.target_ids(best.indices), log_probs, classes
