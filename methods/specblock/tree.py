"""RankTree: SpecBlock's trees, as wide as the estimated rank of the target's token, in two blocks.

Shi et al. 2026, arXiv 2605.07243, and the three tree builders of the release. A block is a chain of its
slots' best tokens with siblings beside them; the next block starts from every sibling and from every chain
node that has some. Where this departs from the release: sequences are batched, ties go to the node that was
proposed first, and nodes with equal paths are always merged, before or after pruning, because siblings must
be distinct.

Shapes: B sequences, P blocks, K slots, c candidates of a slot, N candidates in all, n nodes of the draft.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import ClassVar, NamedTuple, Protocol, cast

import torch
from pydantic import Field
from torch import Tensor
from typing_extensions import override

from harness.config import ConfigError, configurable
from harness.drafting.draft import Draft
from harness.drafting.trees import Grower, TreePolicy
from methods.specblock.network import RANK_CLASSES
from methods.specblock.steps import Guesses

_GIVE_UP = RANK_CLASSES - 1
"""The class of tokens that no sibling would be."""
_FIRST_CUTS = ((0.6, 8), (0.8, 5), (0.9, 3))
"""Probabilities of the likeliest first token, and the children that are enough from there on (release)."""
_LATER_CUTS = ((0.85, 3), (0.95, 2))
"""The same of other slots."""


class BlockGrower(Grower, Protocol):
    """A `Grower` whose network guesses several tokens from one node; see `BlockGrowth`."""

    def first(self, num_children: int) -> Guesses:
        """What the block after the pending token guesses."""

    def size_for(self, num_blocks: int) -> int:
        """How many blocks to ask for where so many are wanted: more where that takes less time."""

    def blocks(self, origins: Tensor, slots: Tensor, tokens: Tensor, num_children: int) -> Guesses:
        """What further blocks guess, each from a token [B, P] of a slot [B, P] of an earlier block [B, P]."""


class _Nodes(NamedTuple):
    """Candidates in the order in which blocks proposed them: chain node first, then its siblings."""

    tokens: Tensor
    """[B, N] int64."""
    scores: Tensor
    """[B, N] float32: sum of log-probabilities from the pending token on; -inf where there is no node."""
    parents: Tensor
    """[B, N] int64: place of the parent, -1 for the pending token."""
    starts: Tensor
    """[B, N] bool: nodes that a block may start from."""
    origins: Tensor
    """[B, N] int64: the block that proposed the node."""
    slots: Tensor
    """[B, N] int64: its slot."""

    def and_then(self, more: _Nodes) -> _Nodes:
        """These candidates, then more."""
        return _Nodes(*(torch.cat(parts, dim=1) for parts in zip(self, more, strict=True)))


@configurable
class RankTree(TreePolicy):
    """Blocks whose slots branch by their class of rank, pruned to a budget."""

    reads_host: ClassVar[Sequence[str]] = ("cpu",)
    budget: int = Field(default=60, ge=1)
    """Nodes verified, the pending token not counted."""
    max_blocks: int = Field(default=2, ge=1)
    """Blocks on a path, and calls of the network in a round."""
    first_width: int = Field(default=10, ge=1)
    """Children of the pending token; blocks behind the second start from as many nodes at most."""
    widths: tuple[int, int, int, int] = (2, 4, 10, 0)
    """Children of a node by the class of rank of its slot: 1, 2 to 4, 5 to 10, beyond. After a slot with 0 no
    further slot of the block branches."""
    cut: bool = False
    """Whether fewer children are enough where the likeliest one is probable, as in the release."""
    merge_first: bool = False
    """Whether nodes with equal paths are merged before the tree is pruned to the budget, as in the release,
    and not after."""
    max_starts: int = Field(default=40, ge=1)
    """The most nodes that a block may start from; the likeliest ones do. 40 is no limit for four slots. With
    a small `budget` fewer start."""

    @property
    @override
    def num_drafted(self) -> None:
        """Drafts vary, as nodes are merged."""
        return None

    @property
    @override
    def num_nodes(self) -> int:
        return self.budget

    @property
    @override
    def num_children(self) -> int:
        return max(self.first_width, *self.widths)

    @property
    @override
    def num_expanded(self) -> int:
        return sum(self._num_starts(number) for number in range(1, self.max_blocks))

    @override
    def grow(self, grower: Grower) -> Draft:
        if not hasattr(grower, "blocks"):
            raise ConfigError(
                "tree: RankTree needs a network that guesses blocks of tokens, as method=specblock has;"
                " type methods.NAME.tree=dynamic"
            )
        return self.pruned(self.candidates(cast(BlockGrower, grower)))

    def candidates(self, grower: BlockGrower) -> _Nodes:
        """All nodes that the blocks propose."""
        guesses = grower.first(self.num_children)
        root = torch.full_like(guesses.tokens[:, :, 0, 0], -1)
        nodes = latest = self._nodes(guesses, root, torch.zeros_like(guesses.log_probs[:, :, 0, 0]), 0, 0)
        num_asked = 1
        for number in range(1, self.max_blocks):
            scores, chosen = self._starting(latest, nodes, self._num_starts(number), grower.size_for)
            if not chosen.shape[1]:
                break
            guesses = grower.blocks(
                latest.origins.gather(1, chosen),
                latest.slots.gather(1, chosen),
                latest.tokens.gather(1, chosen),
                self.num_children,
            )
            count = nodes.tokens.shape[1]
            above = chosen + count - latest.tokens.shape[1]
            latest = self._nodes(guesses, above, scores, count, num_asked)
            nodes = nodes.and_then(latest)
            num_asked += chosen.shape[1]
        return nodes

    def pruned(self, nodes: _Nodes) -> Draft:
        """The likeliest nodes as a draft, parents before children, the likeliest first."""
        num_levels = int(nodes.slots.shape[1] and self.max_blocks * self._slots)
        most = self._num_sorted(self._slots)
        best = nodes.scores.sort(dim=1, descending=True, stable=True)
        order = best.indices[:, :most]
        rank = best.indices.argsort(dim=1)
        tokens, valid = nodes.tokens.gather(1, order), best.values[:, :most] > -math.inf
        above = nodes.parents.gather(1, order)
        parents = torch.where(above < 0, above, rank.gather(1, above.clamp(min=0)))
        parents = torch.where(valid, parents, -1)
        same = _representatives(tokens, parents, valid, num_levels)
        kept = valid & (same == torch.arange(same.shape[1], device=same.device))
        kept &= kept.cumsum(1) <= self.budget
        parents = torch.where(parents < 0, parents, same.gather(1, parents.clamp(min=0)))
        draft = Draft(
            tokens=tokens,
            parents=parents,
            size=torch.full_like(tokens[:, 0], tokens.shape[1]),
            confidence=best.values[:, : tokens.shape[1]].exp(),
            num_levels=min(num_levels, self.budget),
        )
        return _first_ones(draft, kept, self.budget)

    def _nodes(self, guesses: Guesses, above: Tensor, scores: Tensor, begin: int, origin: int) -> _Nodes:
        """The candidates of P blocks below the nodes at `above` [B, P] with `scores` [B, P].

        begin: candidates before these. origin: the number of the first block.
        """
        tokens, log_probs, classes = guesses
        num_rows, num_blocks, slots, width = tokens.shape
        self._slots = slots
        device = tokens.device
        chain = scores[..., None] + log_probs[..., 0].cumsum(-1)
        before = torch.cat([scores[..., None], chain[..., :-1]], dim=-1)
        sizes = self._widths(log_probs[..., 0].exp(), classes, is_first=begin == 0)
        rank = torch.arange(width, device=device)
        exists = (rank < sizes[..., None]) | (rank == 0)
        exists &= (scores > -math.inf)[..., None, None]
        place = begin + torch.arange(num_blocks * slots * width, device=device).view(num_blocks, slots, width)
        heads = torch.cat([above[..., None], place[None, :, :-1, 0].expand(num_rows, -1, -1)], dim=-1)
        unsure = (classes > 0).to(torch.int8).argmax(-1, keepdim=True)
        gave_up = classes.gather(-1, unsure)[..., 0] == _GIVE_UP
        starts = exists & ((rank > 0) | (sizes[..., None] > 1))
        starts[..., -1, 0] |= exists[..., -1, 0] & ~gave_up
        shape = tokens.shape
        numbers = torch.arange(origin, origin + num_blocks, device=device)[:, None, None].expand(shape)
        return _Nodes(
            tokens=tokens.flatten(1),
            scores=(before[..., None] + log_probs).masked_fill(~exists, -math.inf).flatten(1),
            parents=heads[..., None].expand(shape).flatten(1),
            starts=starts.flatten(1),
            origins=numbers.flatten(1),
            slots=torch.arange(slots, device=device)[:, None].expand(shape).flatten(1),
        )

    def _widths(self, likeliest: Tensor, classes: Tensor, is_first: bool) -> Tensor:
        """Children [B, P, K] below each slot's predecessor; fewer than 2: the chain alone."""
        table = torch.tensor(self.widths, device=classes.device)[classes]
        going = torch.cat([torch.ones_like(table[..., :1]), (table > 0).long().cumprod(-1)[..., :-1]], dim=-1)
        sizes = table * going
        if is_first:
            sizes[..., 0] = self.first_width
        if self.cut:
            for slot in range(sizes.shape[-1]):
                for least, most in _FIRST_CUTS if is_first and slot == 0 else _LATER_CUTS:
                    enough = likeliest[..., slot] >= least
                    sizes[..., slot] = torch.where(enough, sizes[..., slot].clamp(max=most), sizes[..., slot])
        return sizes

    def _starting(
        self, latest: _Nodes, nodes: _Nodes, most: int, size_for: Callable[[int], int]
    ) -> tuple[Tensor, Tensor]:
        """Where the next blocks start, the likeliest first: scores [B, P] and places [B, P] among `latest`.

        A node is less likely than the one before it. So no block starts behind a node that would be the
        draft's last one, or not in it, even if there were no further blocks. A sequence with fewer than P
        starts has others at the end, with the score -inf.
        """
        best_ones = min(self._num_sorted(self._slots) - 1, nodes.scores.shape[1])
        if not best_ones:
            return latest.scores[:, :0], latest.parents[:, :0]
        least = nodes.scores.topk(best_ones, dim=1).values[:, -1:]
        scores = latest.scores.masked_fill(~latest.starts | (latest.scores < least), -math.inf)
        most = min(most, best_ones)
        if scores.device.type == "cpu":
            # On other devices to ask for the number would take as long as to run a few blocks more.
            wanted = min(most, int((scores > -math.inf).sum(-1).max()))
            most = min(most, max(wanted, size_for(wanted))) if wanted else 0
        best = scores.sort(dim=1, descending=True, stable=True)
        return best.values[:, :most], best.indices[:, :most]

    def _num_starts(self, number: int) -> int:
        """The most nodes that the blocks `number` on their path (from 1) start from."""
        most = self.max_starts if number == 1 else min(self.max_starts, self.first_width)
        return most if self.merge_first else min(most, self.budget - 1)

    def _num_sorted(self, slots: int) -> int:
        """Candidates from which the draft is taken, the likeliest ones; with blocks of `slots` tokens."""
        return self.budget * (1 + (self.max_blocks - 1) * slots if self.merge_first else 1)


def _representatives(tokens: Tensor, parents: Tensor, valid: Tensor, num_levels: int) -> Tensor:
    """[B, N] int64: of every node the first one with an equal path; nodes are sorted, the likeliest first."""
    count = tokens.shape[1]
    same = torch.arange(count, device=tokens.device).expand_as(tokens)
    alike = (tokens[:, :, None] == tokens[:, None]) & valid[:, :, None] & valid[:, None]
    alike |= torch.eye(count, dtype=torch.bool, device=tokens.device)
    # Level by level: a node's path is its parent's and its token.
    for _ in range(num_levels):
        above = torch.where(parents < 0, parents, same.gather(1, parents.clamp(min=0)))
        equal = alike & (above[:, :, None] == above[:, None])
        same = equal.to(torch.int8).argmax(-1)
    return same


def _first_ones(draft: Draft, kept: Tensor, most: int) -> Draft:
    """The nodes that are kept [B, N], at most `most`, in a rectangle that is as wide without asking the
    device."""
    on_host = kept.device.type == "cpu"
    size = kept.sum(-1)
    width = int(size.max()) if on_host else min(most, kept.shape[1])
    order = (~kept).to(torch.int8).argsort(dim=-1, stable=True)[:, :width]
    number = torch.cat([torch.full_like(size[:, None], -1), kept.cumsum(-1) - 1], dim=1)
    parents = number.gather(1, draft.parents.gather(1, order) + 1)
    real = torch.arange(width, device=size.device) < size[:, None]
    assert draft.confidence is not None
    return Draft(
        tokens=draft.tokens.gather(1, order),
        parents=torch.where(real, parents, -1),
        size=size,
        confidence=draft.confidence.gather(1, order),
        num_levels=draft.num_levels,
    )
