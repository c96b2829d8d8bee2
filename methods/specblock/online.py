"""Training SpecBlock while it drafts (arXiv 2605.07243, of whose adaptation only the idea is published).

What learns is everything but the rank head, which no gradient of a guess reaches: it sizes the tree, and goes
on estimating with the weights that it was loaded with.

Shapes: m rows of guesses, I blocks so far, P new ones, K slots, H hidden size, V draft vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import pad
from typing_extensions import override

from harness.config import configurable
from harness.drafting.draft import Draft
from methods.shared.eagle.online import GrowingAttention
from methods.shared.one_call.online import LastRow, OnlineOneCall
from methods.specblock.network import BlockNetwork
from methods.specblock.rows import RowsDrafter


@configurable
class OnlineRowsDrafter(RowsDrafter, OnlineOneCall):
    """A `RowsDrafter` that can be trained while it drafts one sequence."""

    @override
    def begin_learning(self) -> torch.nn.Module:
        learned = super().begin_learning()
        self._learned.rank_head.requires_grad_(False)
        return learned

    @override
    def output_parameters(self) -> Sequence[torch.nn.Parameter]:
        return list(self._learned.lm_head.parameters())

    @property
    @override
    def last_position(self) -> int:
        if self.rows == "aligned":
            return super().last_position
        return self._starts[0] + self._counts[0] - 1

    @override
    def recalled(self, last: LastRow, draft: Draft, rows: Tensor) -> Callable[[], Tensor]:
        return BlockRecall(last, self._learned, draft, rows)


@dataclass(frozen=True)
class BlockRecall:
    """The guesses after some rows of a draft, with the weights that the network has when it is called.

    After a node that its block itself thought likeliest, the next slot of that block guesses; any other node
    starts a block. That is how trees grow level by level; in a `RankTree`, where two blocks may propose one
    path, what only the later one proposed behind it is guessed by a block of its own.
    """

    last: LastRow
    network: BlockNetwork
    draft: Draft
    rows: Tensor
    follows: dict[int, bool] = field(default_factory=dict)
    """Nodes that continue their block, found by the weights that drafted."""

    def __call__(self) -> Tensor:
        """Logits [m, V]."""
        draft, slots = self.draft, self.network.shape.num_slots
        tokens, parents, depths = (part[0].tolist() for part in (draft.tokens, draft.parents, draft.depths))
        own = torch.ones(slots, slots, dtype=torch.bool, device=self.rows.device).tril()
        outputs, attention = self.last.outputs(own)
        seen = torch.zeros(1, slots, dtype=torch.bool, device=own.device)
        places = {-1: (0, 0)}
        wanted = [row - 1 for row in self.rows.tolist()]
        for depth in range(1, max((depths[node] for node in wanted if node >= 0), default=0) + 1):
            starting: list[tuple[int, int, int]] = []
            for node in (node for node in wanted if node >= 0 and depths[node] == depth):
                block, slot = places[parents[node]]
                if self._follows(node, tokens[node], slot, outputs[0, block, slot]):
                    places[node] = block, slot + 1
                else:
                    places[node] = outputs.shape[1] + len(starting), 0
                    starting.append((tokens[node], block, slot))
            if starting:
                new, seen = self._started(starting, outputs, attention, seen)
                outputs = torch.cat([outputs, new], dim=1)
        blocks, chosen = zip(*(places[node] for node in wanted), strict=True)
        return self.network.logits(outputs[0, list(blocks), list(chosen)])

    @torch.no_grad()
    def _follows(self, node: int, token: int, slot: int, state: Tensor) -> bool:
        if node not in self.follows:
            likeliest = self.network.target_ids(self.network.logits(state).argmax())
            self.follows[node] = slot + 1 < self.network.shape.num_slots and int(likeliest) == token
        return self.follows[node]

    def _started(
        self,
        starting: Sequence[tuple[int, int, int]],
        outputs: Tensor,
        attention: Sequence[GrowingAttention],
        seen: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Outputs [1, P, K, H] of new blocks, and which earlier slots [I + P, (I + P) * K] every block sees.

        starting: of each new block its token, and the block and slot that it comes from.
        """
        tokens, blocks, slots = torch.tensor(starting, device=seen.device).T
        count = outputs.shape[2]
        place = torch.arange(seen.shape[1], device=seen.device)
        behind = seen[blocks] | ((place // count == blocks[:, None]) & (place % count <= slots[:, None]))
        slot = torch.arange(len(tokens) * count, device=seen.device)
        among = (slot[:, None] // count == slot // count) & (slot[:, None] >= slot)
        visible = torch.cat([behind.repeat_interleave(count, dim=0), among], dim=1)
        new = self.last.run(attention, outputs[:, blocks, slots], tokens[None], visible)
        return new, pad(torch.cat([seen, behind]), (0, len(slot)))
