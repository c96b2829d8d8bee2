"""The steps of a block drafter behind a cache: context rows that stay, and one block that does not.

Slot i of the cache holds the keys and values of the row at position i, so that a mask can be made of
positions. Only true features of the target enter; the rows of a block are overwritten by the next round.

Shapes: B sequences, m context rows, n rows of a block, F width of the target's features, H hidden size,
C readable cache slots.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from harness.drafting.drafter import TargetView
from harness.runtime.attention import grouped, tree_mask
from harness.runtime.cache import SlotCache
from harness.runtime.write_plan import WritePlan
from methods.shared.block.networks.network import BlockNetwork
from methods.shared.block.shape import BlockShape


class BlockSteps:
    """A block drafter behind a cache."""

    def __init__(self, target: TargetView, network: BlockNetwork, width: int) -> None:
        """width: inputs of the blocks that are drafted; the only number of rows that is compiled for."""
        self._target, self.network = target, network
        self.cache: SlotCache = target.new_cache()
        kinds = list(zip(network.shape.causal, network.shape.sliding, strict=True))
        self._kinds = sorted(set(kinds))
        self._kind_of = [self._kinds.index(kind) for kind in kinds]
        self._program = target.program(self._step, (width,))

    def take(self, features: Tensor, counts: Sequence[int], row: int | None = None) -> None:
        """Take in features [B, m, F] of committed tokens; the first `counts[b]` of each sequence stay.

        row: the only sequence of the cache that they belong to; None: all of them.
        """
        cache, network = self.cache, self.network
        rows = slice(0, len(cache.lengths)) if row is None else slice(row, row + 1)
        num_rows = features.shape[1]
        places = torch.arange(num_rows, device=features.device)
        positions = cache.base(features.device)[rows, None] + places
        cache.aim(WritePlan.decode(cache.lengths, rows, num_rows, features.device))
        pairs = network.context(network.project(features), positions)
        for layer, (key, value) in enumerate(pairs):
            cache.update(key, value, layer)
        fed = [0] * len(cache.lengths)
        fed[rows] = counts
        cache.advance(fed)

    def run(self, ids: Tensor) -> Tensor:
        """States [B, n, H] of a block `ids` [B, n] right behind the context; it leaves nothing."""
        cache, num_new = self.cache, ids.shape[1]
        lengths, device = cache.lengths, ids.device
        positions = cache.base(device)[:, None] + torch.arange(num_new, device=device)
        tree = torch.ones(len(ids), num_new, num_new, dtype=torch.bool, device=device)
        program = self._program
        if program is None or not (cache.num_slots and program.serves(len(ids), num_new)):
            cache.aim(WritePlan.decode(lengths, slice(0, len(ids)), num_new, device))
            return self._step(ids, positions, tree_mask(lengths, tree), cache)
        cache.aim(WritePlan.program(lengths, num_new, device))
        mask = tree_mask(lengths, tree, cache.num_slots)
        states: Tensor = program(ids.contiguous(), positions, mask=mask, cache=cache)
        return states

    def _step(self, ids: Tensor, positions: Tensor, mask: Tensor, cache: SlotCache) -> Tensor:
        network, shape = self.network, self.network.shape
        keys_at = torch.arange(mask.shape[-1], device=mask.device)
        masks = [
            mask & seen(shape, *kind, positions, positions[:, :1], keys_at)[:, None] for kind in self._kinds
        ]

        def attend(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            keys, values = cache.update(key, value, layer)
            return grouped(network, query, keys, values, masks[self._kind_of[layer]])[0]

        states: Tensor = network(network.embed(ids, self._target), positions, attend)
        return states


def seen(
    shape: BlockShape, causal: bool, sliding: bool, positions: Tensor, anchors: Tensor, keys_at: Tensor
) -> Tensor:
    """The keys that a layer's kind lets rows see, bool [..., n, C].

    It leaves out what all layers have in common: keys are context before the anchor, or the same block.

    Args:
        shape: the conventions of the window.
        causal: whether a row sees only the slots before it and itself.
        sliding: whether it sees only a window.
        positions: [..., n] int64, of the rows.
        anchors: [..., n] or [..., 1] int64, of the first rows of their blocks.
        keys_at: [C] or [..., C] int64, positions of the keys.
    """
    gap = positions[..., None] - keys_at[..., None, :]
    allowed = torch.ones_like(gap, dtype=torch.bool)
    if causal:
        allowed = gap >= 0
    if sliding:
        assert shape.window is not None, "a sliding layer has a window"
        if shape.window_bound == "anchor":
            allowed = allowed & (keys_at[..., None, :] >= anchors[..., None] - shape.window)
        else:
            allowed = allowed & (gap.abs() < shape.window)
    return allowed
