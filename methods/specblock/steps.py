"""The steps of SpecBlock's network behind a cache: blocks over new rows, and the best children of their
slots.

Shapes: B sequences, r rows, K slots, c children, E slots behind the cached ones, H hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from harness.drafting.drafter import TargetView
from harness.runtime.cache import SlotCache
from methods.shared.one_call.steps import SIZES, OneCallSteps
from methods.specblock.network import BlockNetwork


class Guesses(NamedTuple):
    """What the slots of blocks guess."""

    tokens: Tensor
    """[B, r, K, c] int64: the best tokens after each slot's predecessor, best first, as ids of the target."""
    log_probs: Tensor
    """[B, r, K, c] float32."""
    classes: Tensor
    """[B, r, K] int64: the estimated class of rank of the target's token, 0 to 3."""


class BlockSteps(OneCallSteps):
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
        compile for: those that the tree starts blocks from.
        """
        sizes = sorted({*SIZES, *tree_sizes})
        super().__init__(target, network, cache, sizes, network.shape.num_slots)
        self.network, self._rank_topk = network, rank_topk
        self._guesses = target.program(self._guess, sizes) if cache is None else None

    def guess(self, states: Tensor, num_children: int) -> Guesses:
        """What slots with the outputs [B, r, K, H] guess."""
        compiled = self._guesses
        if compiled is None or not compiled.serves(*states.shape[:2]):
            return Guesses(*self._guess(states, num_children))
        return Guesses(*compiled(states.contiguous(), constants=[num_children]))

    def _guess(self, states: Tensor, num_children: int) -> tuple[Tensor, Tensor, Tensor]:
        network = self.network
        logits = network.logits(states).float()
        best = logits.topk(num_children, dim=-1)
        # Log-probabilities in float32 and at most 0, so that no child outscores its parent.
        log_probs = best.values - logits.logsumexp(-1, keepdim=True)
        classes = network.rank_logits(states, logits, self._rank_topk).argmax(-1)
        return network.target_ids(best.indices), log_probs, classes
