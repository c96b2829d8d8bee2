"""HeadDrafter: the rounds of a drafter that grows trees with a draft head behind a cache of its own.

Shapes: B sequences, m pairs, F width of the target's features.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from pydantic import Field
from torch import Tensor
from typing_extensions import override

from harness.config import configurable
from harness.drafting.draft import Draft
from harness.drafting.drafter import Drafter, HiddenTap, Outcome
from harness.drafting.step_costs import StepCosts
from harness.drafting.trees import TreePolicy
from methods.shared.eagle.growth import Growth
from methods.shared.eagle.heads.network import HeadNetwork
from methods.shared.eagle.steps import HeadSteps
from methods.shared.eagle.waiting import Pairs


@configurable
class HeadDrafter(Drafter):
    """Base of drafters with a head; a subclass gives the head to `draft_with` when it is bound.

    A round feeds the pairs (true feature, next token) of the last round to the head's cache. The tree is then
    grown on rows behind them that are dropped afterwards, so no key of a guessed feature survives.
    """

    tree: TreePolicy
    """How trees grow, see `harness.drafting.trees`."""
    waiting_pairs: int | None = Field(default=40, ge=1)
    """Where a router has not asked for a draft for some rounds, their pairs wait: of more than twice as many
    as this, only so many, the latest, are fed. None feeds all. What waits since the prompt is fed
    completely."""

    def draft_with(self, network: HeadNetwork, taps: tuple[HiddenTap, ...]) -> None:
        """Draft with this head from now on; it reads the target's states at `taps`."""
        self._taps = taps
        self._target.prepare(network)
        self._steps = HeadSteps(self._target, network)
        self._cache = self._steps.cache
        self._round = self._target.captured(self._grow) if self.tree.device_only else None

    @property
    @override
    def taps(self) -> tuple[HiddenTap, ...]:
        return self._taps

    @property
    @override
    def num_drafted(self) -> int | None:
        return self.tree.num_drafted

    @property
    @override
    def weighs_costs(self) -> bool:
        return super().weighs_costs or self.tree.weighs_costs

    @override
    def use_costs(self, costs: StepCosts, num_rows: int) -> None:
        super().use_costs(costs, num_rows)
        self.tree.use_costs(costs, num_rows, self.rehearse)

    @property
    @override
    def num_bytes(self) -> int:
        network = self._steps.network
        return sum(tensor.nbytes for tensor in (*network.parameters(), *network.buffers()))

    @override
    def rehearse(self, num_rows: int, context: int) -> Callable[[int], None]:
        """Time the head over sibling nodes, from their embedding to their best children."""
        self.reset(num_rows)
        network, device = self._steps.network, self._target.device
        growth = Growth(self._steps)
        size = (num_rows, context, network.feature_size)
        features = torch.ones(size, dtype=network.dtype, device=device)
        growth.feed(
            features, torch.ones(num_rows, context, dtype=torch.int64, device=device), [context] * num_rows
        )

        def call(num_tokens: int) -> None:
            tokens = torch.ones(num_rows, num_tokens, dtype=torch.int64, device=device)
            growth.rewind()
            growth.expand(tokens, torch.full_like(tokens, -1), self.tree.num_children)

        return call

    @torch.no_grad()
    @override
    def warm_up(self, num_rows: int) -> None:
        """Grow a tree after every number of pairs that a round may bring, and expand every number of nodes
        that a tree may."""
        self.reset(num_rows)
        size, dtype = self._steps.network.feature_size, self._steps.network.dtype
        # Nothing is compiled for an empty cache; the first tree fills it.
        for count in (1, *self._steps.sizes):
            self._counts = [count] * num_rows
            self._tokens = torch.zeros(num_rows, count, dtype=torch.int64, device=self._target.device)
            self._features = torch.ones(num_rows, count, size, dtype=dtype, device=self._target.device)
            self.propose([0] * num_rows)
        expand = self.rehearse(num_rows, 1)
        for width in self.tree.widths:
            expand(width)

    @override
    def new_call(self, keep_memory: bool) -> None:
        self.tree.new_call(keep_memory)

    @override
    def reset(self, num_rows: int) -> None:
        self._cache.clear(num_rows)
        self._waits, self._since_prompt = False, [True] * num_rows

    @override
    def observe(self, outcome: Outcome) -> None:
        """Keep the pairs of a true feature and the token after it for the next draft."""
        if outcome.draft is not None and not self._waits and outcome.draft.width:
            self.tree.observe(sum(map(len, outcome.committed)) / len(outcome.committed))
        counts = [len(committed) for committed in outcome.committed]
        longest = max(counts)
        following = [
            [*committed[1:], pending] + [0] * (longest - len(committed))
            for committed, pending in zip(outcome.committed, outcome.pending, strict=True)
        ]
        device, dtype = self._target.device, self._steps.network.dtype
        tokens = torch.tensor(following).to(device, non_blocking=True)
        features = torch.cat([states.to(device, dtype) for states in outcome.taps], dim=-1)
        if outcome.rows is None:
            fresh = Pairs(features, tokens, counts)
            if self._waits:
                fresh = Pairs(self._features, self._tokens, self._counts).followed_by(fresh)
            else:
                self._since_prompt = [outcome.draft is None] * len(counts)
            self._features, self._tokens, self._counts = fresh
            self._waits = True
            return
        for place, row in enumerate(outcome.rows):
            self._begin(row, features[place, : counts[place]], tokens[place, : counts[place]])

    def _begin(self, row: int, features: Tensor, tokens: Tensor) -> None:
        """Start a new sequence in this row with its pairs [m, F] and [m].

        All but the last pair are fed at once: if they waited for the next draft, every row would be as wide.
        """
        self._cache.lengths[row] = 0
        if len(tokens) > 1:
            growth = Growth(self._steps, row)
            growth.feed(features[None, :-1], tokens[None, :-1], [len(tokens) - 1])
        self._features[row, 0], self._tokens[row, 0], self._counts[row] = features[-1], tokens[-1], 1
        self._since_prompt[row] = True

    @override
    def propose(self, room: Sequence[int]) -> Draft:
        # The room is ignored: up to the last round, the tree is the one that the official code would grow.
        self.growth = Growth(self._steps)
        if self.waiting_pairs is not None:
            pairs = Pairs(self._features, self._tokens, self._counts)
            self._features, self._tokens, self._counts = pairs.latest(self.waiting_pairs, self._since_prompt)
        self._waits = False
        features, tokens = self.growth.padded(self._features, self._tokens)
        num_rows, num_pairs = tokens.shape
        level, num_more = self.tree.num_children, self.tree.num_expanded
        if self._round is None or not self._steps.captures(num_rows, num_pairs, level, num_more):
            self.growth.feed(features, tokens, self._counts)
            return self.tree.grow(self.growth)
        counts = torch.tensor(self._counts).to(tokens.device, non_blocking=True)
        draft: Draft = self._round(
            *(features, tokens, counts, self._cache.base(tokens.device)), where=self._cache.where
        )
        self._cache.advance(self._counts)
        # The next replay overwrites the graph's outputs, and drafts are read again after their round.
        return draft.copied()

    def _grow(self, features: Tensor, tokens: Tensor, counts: Tensor, lengths: Tensor) -> Draft:
        """The part of a round that is captured."""
        with self._cache.lengths_on_device(lengths):
            growth = Growth(self._steps)
            growth.feed(features, tokens, counts)
            return self.tree.grow(growth)

    @override
    def keep(self, rows: Sequence[int]) -> None:
        self._cache.keep(list(rows))
        self._tokens, self._features = self._tokens[list(rows)], self._features[list(rows)]
        self._counts = [self._counts[row] for row in rows]
        self._since_prompt = [self._since_prompt[row] for row in rows]
