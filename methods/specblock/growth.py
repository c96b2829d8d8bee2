"""One round of SpecBlock: rows that stay in its cache, then blocks that start from guesses and do not.

Shapes: B sequences, m pairs, P starts of blocks, I blocks so far, K slots, c children, H hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad
from typing_extensions import override

from harness.drafting.trees import Proposals
from methods.shared.one_call.growth import OneCallGrowth
from methods.specblock.steps import BlockSteps, Guesses


class BlockGrowth(OneCallGrowth):
    """The `Grower` of one round, which trees of blocks can ask for whole blocks, too."""

    def __init__(
        self, steps: BlockSteps, row: int | None = None, skipped: Sequence[int] | None = None
    ) -> None:
        """row, skipped: see `OneCallGrowth`. `outputs` grow to [B, I, K, H] with the blocks that are asked
        for."""
        super().__init__(steps, row, skipped)
        self._steps, self._num_slots = steps, steps.slots_per_row

    @override
    def feed(self, features: Tensor, tokens: Tensor, counts: Sequence[int] | Tensor) -> Tensor:
        found = super().feed(features, tokens, counts)
        num_rows, device = len(tokens), tokens.device
        self._seen = torch.zeros(num_rows, 1, self._num_slots, dtype=torch.bool, device=device)
        self._guesses: Guesses | None = None
        self._at = torch.zeros(2, num_rows, 1, dtype=torch.int64, device=device)
        return found

    def rewind(self) -> None:
        """Forget the blocks that were started from guesses; what was fed stays."""
        self.outputs, self._seen = self.outputs[:, :1], self._seen[:, :1, : self._num_slots]
        self._at = self._at[:, :, :1]
        if self._guesses is not None:
            self._guesses = Guesses(*(part[:, :1] for part in self._guesses))

    def first(self, num_children: int) -> Guesses:
        """What the block after the pending token guesses; r = 1."""
        if self._guesses is None:
            self._guesses = self._steps.guess(self.outputs, num_children)
        return self._guesses

    def size_for(self, num_blocks: int) -> int:
        """The number of blocks to run for `num_blocks`: a few more where only those are compiled."""
        return self._steps.size_for(len(self.outputs), num_blocks)

    def blocks(self, origins: Tensor, slots: Tensor, tokens: Tensor, num_children: int) -> Guesses:
        """What P further blocks guess; they are numbered in the order in which they were asked for, from 1.

        A block starts from the token `tokens` [B, P] that was guessed after slot `slots` [B, P] of block
        `origins` [B, P] took its turn, so that it sees the slots of that block up to this one, what that
        block saw of other blocks, and every committed position but the last, which it sees as far as its
        first block's slots.
        """
        (num_rows, num_blocks), count, device = tokens.shape, self._num_slots, tokens.device
        rows = torch.arange(num_rows, device=device)[:, None]
        places = torch.arange(self._seen.shape[-1], device=device)
        own = (places // count == origins[..., None]) & (places % count <= slots[..., None])
        seen = self._seen[rows, origins] | own
        slot = torch.arange(num_blocks * count, device=device)
        among = (slot[:, None] // count == slot // count) & (slot[:, None] >= slot)
        tree = torch.cat([seen.repeat_interleave(count, dim=1), among.expand(num_rows, -1, -1)], dim=-1)
        outputs = self._steps.run(
            self._rows,
            tokens,
            self.outputs[rows, origins, slots],
            self.base[:, None].expand_as(tokens),
            tree,
            again=count,
        )
        self.outputs = torch.cat([self.outputs, outputs], dim=1)
        more = num_blocks * count
        self._seen = torch.cat([pad(self._seen, (0, more)), pad(seen, (0, more))], dim=1)
        return self._steps.guess(outputs, num_children)

    def start(self, num_children: int) -> Proposals:
        """The root's best children; see `Grower`."""
        guesses = self.first(num_children)
        return Proposals(guesses.tokens[:, 0, 0], guesses.log_probs[:, 0, 0])

    def expand(self, tokens: Tensor, parents: Tensor, num_children: int) -> Proposals:
        """The best children of nodes; see `Grower`.

        The next slot of its parent's block guesses after a node that the block itself thought likeliest; any
        other node starts a block.
        """
        guesses, device = self.first(num_children), tokens.device
        rows = torch.arange(len(tokens), device=device)[:, None]
        origins, slots = self._at[:, rows, parents + 1]
        follows = (tokens == guesses.tokens[rows, origins, slots, 0]) & (slots + 1 < self._num_slots)
        number = guesses.tokens.shape[1] + torch.arange(tokens.shape[1], device=device)
        # On other devices to ask whether all follow would take as long as to run the blocks.
        if device.type != "cpu" or not bool(follows.all()):
            more = self.blocks(origins, slots, tokens, num_children)
            guesses = Guesses(*(torch.cat(parts, dim=1) for parts in zip(guesses, more, strict=True)))
            self._guesses = guesses
        origins = torch.where(follows, origins, number)
        slots = torch.where(follows, slots + 1, 0)
        self._at = torch.cat([self._at, torch.stack([origins, slots])], dim=-1)
        return Proposals(guesses.tokens[rows, origins, slots], guesses.log_probs[rows, origins, slots])
