"""PairDrafter: the rounds of a drafter that feeds true features to a network behind a cache of its own.

Shapes: B sequences, m pairs, F width of the target's features.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import pad
from typing_extensions import override

from harness.config import configurable
from harness.drafting.draft import Draft
from harness.drafting.drafter import Drafter, HiddenTap, Outcome
from harness.drafting.step_costs import StepCosts
from harness.drafting.trees import Grower, TreePolicy
from methods.shared.eagle.steps import CachedSteps
from methods.shared.eagle.waiting import Pairs


class PairGrowth(Grower, Protocol):
    """One round of a network: pairs that stay in its cache, then the tree."""

    def padded(self, features: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Features and tokens of pairs, with rows added up to a number that is compiled for."""

    def feed(self, features: Tensor, tokens: Tensor, counts: Sequence[int] | Tensor) -> Tensor:
        """Take in true pairs, of which the first `counts[b]` stay in the cache; see `Growth.feed`."""

    def rewind(self) -> None:
        """Forget the nodes that were expanded; what was fed stays."""


@configurable
class PairDrafter(Drafter):
    """Base of drafters with a network of their own, which a subclass gives to `use` when it is bound.

    A round feeds the pairs (true feature, next token) of the last round to the network's cache. The tree is
    then grown on rows behind them that are dropped afterwards, so no key of a guessed feature survives.
    """

    tree: TreePolicy
    """How trees grow, see `harness.drafting.trees`."""
    waiting_pairs: int | None = Field(default=40, ge=1)
    """Where a router has not asked for a draft for some rounds, their pairs wait: of more than twice as many
    as this, only so many, the latest, are fed. None feeds all. What waits since the prompt is fed
    completely."""

    def use(self, network: nn.Module, taps: tuple[HiddenTap, ...], steps: CachedSteps) -> None:
        """Draft with this network from now on; it reads the target's states at `taps`."""
        self._module, self._taps, self._steps = network, taps, steps
        self._cache = steps.cache
        modules = (network, *steps.further_modules)
        on_host = self._target.device.type in self.tree.reads_host
        self._round = None if on_host else self._target.captured(self._grow, modules, self._cache)

    @property
    @abstractmethod
    def feature_shape(self) -> tuple[int, torch.dtype]:
        """F, the width of the features that the network reads, and their dtype."""

    @abstractmethod
    def new_growth(self, row: int | None = None) -> PairGrowth:
        """A round of the network. row: the only sequence of the cache that is fed; None: all of them."""

    @property
    def tree_rows(self) -> tuple[Sequence[int], int]:
        """Rows that the tree runs at once, in each of its calls of the network, and in all."""
        return (self.tree.num_children,), self.tree.num_expanded

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
        self.tree.use_costs(costs, num_rows, self.rehearse_level)

    @property
    @override
    def num_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in (*self._module.parameters(), *self._module.buffers()))

    @override
    def rehearse(self, num_rows: int, context: int) -> Callable[[int], None]:
        return self.rehearse_level(num_rows, context)

    def rehearse_level(self, num_rows: int, context: int) -> Callable[[int], None]:
        """Time the network over sibling nodes, up to their best children; see `rehearse`. A level of a
        captured round takes less."""
        self.reset(num_rows)
        device, (width, dtype) = self._target.device, self.feature_shape
        growth = self.new_growth()
        features = torch.ones(num_rows, context, width, dtype=dtype, device=device)
        tokens = torch.ones(num_rows, context, dtype=torch.int64, device=device)
        growth.feed(features, tokens, [context] * num_rows)

        def call(num_tokens: int) -> None:
            tokens = torch.ones(num_rows, num_tokens, dtype=torch.int64, device=device)
            growth.rewind()
            growth.expand(tokens, torch.full_like(tokens, -1), self.tree.num_children)

        return call

    @torch.no_grad()
    @override
    def warm_up(self, num_rows: int) -> None:
        """Grow trees after all numbers of pairs that are compiled for; expand all numbers of nodes."""
        self.reset(num_rows)
        # The first one makes the program of a round, or shows that there is none.
        for count in (2, 1, *self._steps.sizes):
            made = Pairs.random(num_rows, count, self.feature_shape, self._target)
            self._features, self._tokens, self._counts = made
            if not self._cache.num_slots:
                # Nothing is compiled for a cache without memory.
                self.new_growth().feed(self._features, self._tokens, self._counts)
            self.propose([0] * num_rows)
        if self.tree.level_sizes:
            expand = self.rehearse_level(num_rows, 1)
            for width in self.tree.level_sizes:
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
        device, dtype = self._target.device, self.feature_shape[1]
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
            growth = self.new_growth(row)
            growth.feed(features[None, :-1], tokens[None, :-1], [len(tokens) - 1])
        self._features[row, 0], self._tokens[row, 0], self._counts[row] = features[-1], tokens[-1], 1
        self._since_prompt[row] = True

    @override
    def propose(self, room: Sequence[int]) -> Draft:
        # The room is ignored: up to the last round, the tree is the one that the official code would grow.
        self.growth = self.new_growth()
        if self.waiting_pairs is not None:
            pairs = Pairs(self._features, self._tokens, self._counts)
            self._features, self._tokens, self._counts = pairs.latest(self.waiting_pairs, self._since_prompt)
        self._waits = False
        size = self._captured_size()
        if self._round is None or size is None:
            features, tokens = self.growth.padded(self._features, self._tokens)
            self.growth.feed(features, tokens, self._counts)
            return self.tree.grow(self.growth)
        more = size - self._tokens.shape[1]
        features, tokens = pad(self._features, (0, 0, 0, more)), pad(self._tokens, (0, more))
        self._cache.make_room((size + self.tree_rows[1]) * self._steps.slots_per_row)
        counts = torch.tensor(self._counts).to(tokens.device, non_blocking=True)
        lengths = self._cache.base(tokens.device)
        draft: Draft = self._round(features, tokens, counts, lengths, where=self._cache.where)
        self._cache.advance(self._counts)
        # The next replay overwrites a graph's outputs, and drafts are read again after their round.
        return draft.copied()

    def _captured_size(self) -> int | None:
        """The number of pairs to feed in a captured round; None: the round cannot be captured.

        Where too many wait, as after a prompt, this feeds all but the last of each sequence, which then waits
        alone.
        """
        num_rows, num_pairs = self._tokens.shape
        if self._round is None or self._round.problem:
            return None
        size = self._steps.captured_size(num_rows, num_pairs, *self.tree_rows)
        if size is not None or self._steps.captured_size(num_rows, 1, *self.tree_rows) is None:
            return size
        self.growth.feed(self._features[:, :-1], self._tokens[:, :-1], [count - 1 for count in self._counts])
        pairs = Pairs(self._features, self._tokens, self._counts)
        self._features, self._tokens, self._counts = pairs.last()
        return self._steps.captured_size(num_rows, 1, *self.tree_rows)

    def _grow(self, features: Tensor, tokens: Tensor, counts: Tensor, lengths: Tensor) -> Draft:
        """The part of a round that is captured."""
        with self._cache.lengths_on_device(lengths):
            growth = self.new_growth()
            growth.feed(features, tokens, counts)
            return self.tree.grow(growth)

    @override
    def keep(self, rows: Sequence[int]) -> None:
        self._cache.keep(list(rows))
        self._tokens, self._features = self._tokens[list(rows)], self._features[list(rows)]
        self._counts = [self._counts[row] for row in rows]
        self._since_prompt = [self._since_prompt[row] for row in rows]
