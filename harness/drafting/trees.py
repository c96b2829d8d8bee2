"""Tree policies: how a drafter's guesses grow into a tree, and which of its nodes are worth verifying.

Shapes: B sequences, k nodes of a level, c children of a node, N candidates in the pool, n nodes of the draft,
V vocabulary.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, NamedTuple, Protocol

import torch
from pydantic import Field, model_validator
from torch import Tensor
from typing_extensions import override

from harness.config import configurable
from harness.drafting.draft import Draft
from harness.drafting.step_costs import CostWeigher
from harness.runtime.torch_internals import assert_on_device


class Proposals(NamedTuple):
    """The likeliest children of nodes, best first.

    tokens [..., c] int64: ids of the target's vocabulary. log_probs [..., c] float32: given the parent.
    """

    tokens: Tensor
    log_probs: Tensor


class Grower(Protocol):
    """The drafter as a policy sees it: it guesses after the pending token, and after any node given to it."""

    @property
    def context(self) -> float:
        """Tokens of a sequence that the target has cached, averaged over the batch."""

    def start(self, num_children: int) -> Proposals:
        """Children [B, c] of the pending token."""

    def expand(self, tokens: Tensor, parents: Tensor, num_children: int) -> Proposals:
        """Children [B, k, c] of the nodes `tokens` [B, k].

        parents [B, k] int64: the earlier expanded node that each of them hangs from, counted over all calls
        in order, -1 for the pending token.
        """


@configurable
class TreePolicy(CostWeigher, ABC):
    """Base of all policies."""

    reads_host: ClassVar[Sequence[str]] = ("cpu", "cuda")
    """The types of device on which `grow` reads a tensor's values on the host or copies anything to the
    device. On others a whole round of a drafter can be captured as a CUDA graph or compiled as a program."""

    @property
    def num_drafted(self) -> int | None:
        """The number of nodes of every draft; None: it varies."""
        return self.num_nodes

    @property
    def level_sizes(self) -> Sequence[int]:
        """The numbers of nodes that `grow` may expand at once, where they vary from draft to draft: all of
        them are compiled before the clock counts."""
        return ()

    def new_call(self, keep_memory: bool) -> None:
        """A call of the loop begins; forget what earlier ones taught, unless `keep_memory`."""

    def observe(self, num_emitted: float) -> None:
        """The draft that was grown last emitted so many tokens per sequence, the target's own included."""

    @property
    @abstractmethod
    def num_nodes(self) -> int:
        """The largest number of nodes of a draft."""

    @property
    @abstractmethod
    def num_children(self) -> int:
        """The largest number of children of a node; no drafter's vocabulary may be smaller."""

    @property
    @abstractmethod
    def num_expanded(self) -> int:
        """The largest number of nodes that `grow` expands, each of which takes a row of the drafter's
        cache."""

    @abstractmethod
    def grow(self, grower: Grower) -> Draft:
        """A draft for every sequence.

        Its nodes may depend on confidences, of other sequences of the batch as well, and on costs; never on
        random numbers that the acceptor uses, because that would change the distribution of the output.
        """


@dataclass(frozen=True, kw_only=True)
class Pool:
    """Candidates in the order of their expansion: level by level, parents in order, best child first."""

    tokens: Tensor
    """[B, N] int64."""
    scores: Tensor
    """[B, N] float32: sum of log-probabilities from the pending token on."""
    parents: Tensor
    """[B, N] int64: pool index of the parent, -1 for the pending token."""

    def draft(self, chosen: Tensor, num_levels: int, is_chain: bool = False) -> Draft:
        """The candidates at the pool indices `chosen` [B, n], ascending, as a draft in the order of the pool.

        The parents of chosen candidates must be chosen. They are where the best ones are chosen: a child
        never outscores its parent, and comes after it in the pool.
        """
        count = chosen.shape[1]
        places = torch.arange(count, device=chosen.device).expand_as(chosen)
        rank = torch.full_like(self.tokens, -2).scatter(1, chosen, places)
        above = self.parents.gather(1, chosen)
        parents = torch.where(above < 0, above, rank.gather(1, above.clamp(min=0)))
        # Missing only where scores are not numbers. Asserted on the device: the host need not wait.
        assert_on_device((parents >= -1).all(), "a drafted node without its parent")
        return Draft(
            tokens=self.tokens.gather(1, chosen),
            parents=parents,
            size=torch.full_like(chosen[:, 0], count),
            confidence=self.scores.gather(1, chosen).exp(),
            is_chain=is_chain,
            num_levels=num_levels,
        )


@configurable
class DynamicTree(TreePolicy):
    """EAGLE-2's tree (Li et al. 2024, arXiv 2406.16858): expand the best beam, then rerank all candidates.

    Names and counts are those of the official code. Where this departs from it: scores are float32 and ties
    go to the candidate expanded first, so that no node is ever drafted without its parent.
    """

    total_token: int = Field(default=60, ge=2)
    """Nodes verified, including the pending token, so total_token - 1 nodes are drafted."""
    depth: int = Field(default=7, ge=0)
    """Levels after the first, so a path has up to depth + 1 tokens."""
    top_k: int = Field(default=10, ge=1)
    """Children per node, and nodes per level that are expanded; 1 makes a chain."""
    reads_host: ClassVar[Sequence[str]] = ()

    @model_validator(mode="after")
    def _enough_candidates(self) -> DynamicTree:
        candidates = self.top_k + self.depth * self.top_k**2
        if self.total_token - 1 > candidates:
            raise ValueError(
                f"total_token {self.total_token} needs {self.total_token - 1} candidates, but depth"
                f" {self.depth} and top_k {self.top_k} give {candidates}; lower total_token or raise them"
            )
        return self

    @property
    @override
    def num_nodes(self) -> int:
        return self.total_token - 1

    @property
    @override
    def num_children(self) -> int:
        return self.top_k

    @property
    @override
    def num_expanded(self) -> int:
        return self.depth * self.top_k

    @override
    def grow(self, grower: Grower) -> Draft:
        return self.rerank(self.expand(grower))

    def expand(self, grower: Grower) -> Pool:
        """All candidates: k children of the pending token, then k of each of the k best of every level."""
        k = self.top_k
        first = grower.start(k)
        num_rows, device = first.tokens.shape[0], first.tokens.device
        tokens, scores = [first.tokens], [first.log_probs]
        parents = [torch.full_like(first.tokens, -1)]
        # frontier: the nodes to expand, by their place in the last level. begin: where that level begins in
        # the pool. hangs_from: the parents of the frontier, counted over all expanded nodes.
        frontier = torch.arange(k, device=device).expand(num_rows, k)
        hangs_from, begin = parents[0], 0
        for level in range(self.depth):
            found = grower.expand(tokens[-1].gather(1, frontier), hangs_from, k)
            above = scores[-1].gather(1, frontier)
            parents.append((frontier + begin)[..., None].expand(-1, -1, k).flatten(1))
            begin += tokens[-1].shape[1]
            tokens.append(found.tokens.flatten(1))
            scores.append((above[..., None] + found.log_probs).flatten(1))
            frontier = _best(scores[-1], k)
            hangs_from = frontier // k + level * k
        return Pool(tokens=torch.cat(tokens, 1), scores=torch.cat(scores, 1), parents=torch.cat(parents, 1))

    def select(self, pool: Pool) -> Tensor:
        """Pool indices [B, n] of the best candidates, ascending: parents before children."""
        return _best(pool.scores, self.num_nodes).sort(dim=1).values

    def rerank(self, pool: Pool) -> Draft:
        """The best candidates of all levels as a draft, in the order of the pool."""
        levels = min(self.depth + 1, self.num_nodes)
        return pool.draft(self.select(pool), levels, is_chain=self.top_k == 1)


@configurable
class StaticTree(TreePolicy):
    """A tree of fixed shape, made of ranks of children, as EAGLE-1's (Li et al. 2024, arXiv 2401.15077).

    The default is the official `mc_sim_7b_63` with 25 nodes. The official code draws children at temperature
    > 0; here they are the likeliest at any temperature, and verification is exact for both.
    """

    paths: tuple[tuple[int, ...], ...] = tuple(
        tuple(int(rank) for rank in path)
        for path in (
            *("0", "1", "2", "3"),
            *("00", "01", "02", "10", "11", "20", "21", "30"),
            *("000", "001", "002", "010", "011", "020", "021", "100"),
            *("0000", "0001", "0002", "00000", "00001"),
        )
    )
    """Every node as the ranks of the children on its path from the pending token, 0 for the likeliest child.
    All prefixes of a path must be listed, too."""
    reads_host: ClassVar[Sequence[str]] = ("cuda",)

    @model_validator(mode="after")
    def _closed(self) -> StaticTree:
        if not self.paths:
            raise ValueError("paths: needs at least one node, as in [[0], [0, 0]]")
        for path in self.paths:
            if not path or min(path) < 0:
                raise ValueError(f"paths: {list(path)} is not a list of ranks from 0")
            if len(path) > 1 and path[:-1] not in self.paths:
                raise ValueError(f"paths: {list(path)} is listed, but not its parent {list(path[:-1])}")
        if len(set(self.paths)) < len(self.paths):
            raise ValueError("paths: a node is listed twice")
        return self

    @property
    @override
    def num_nodes(self) -> int:
        return len(self.paths)

    @property
    @override
    def num_children(self) -> int:
        return 1 + max(max(path) for path in self.paths)

    @property
    @override
    def num_expanded(self) -> int:
        return len({path[:-1] for path in self.paths} - {()})

    @cached_property
    def _levels(self) -> list[list[tuple[int, ...]]]:
        deepest = max(map(len, self.paths))
        return [sorted(path for path in self.paths if len(path) == depth) for depth in range(1, deepest + 1)]

    @override
    def grow(self, grower: Grower) -> Draft:
        widest, levels = self.num_children, self._levels
        found = grower.start(widest)
        (num_rows, _), device = found.tokens.shape, found.tokens.device
        tokens, scores = [], []
        slots: dict[tuple[int, ...], int] = {(): -1}
        places: dict[tuple[int, ...], int] = {(): 0}
        above = torch.zeros(num_rows, 1, device=device)
        for level, following in zip(levels, [*levels[1:], []], strict=True):
            # Where each node's token stands among the children that the level before proposed.
            origin = torch.tensor([places[path[:-1]] for path in level], device=device)
            index = origin * widest + torch.tensor([path[-1] for path in level], device=device)
            tokens.append(found.tokens.flatten(1)[:, index])
            scores.append(above[:, origin] + found.log_probs.flatten(1)[:, index])
            growing = sorted({child[:-1] for child in following})
            if growing:
                chosen = torch.tensor([level.index(path) for path in growing], device=device)
                parents = torch.tensor([slots[path[:-1]] for path in growing], device=device)
                found = grower.expand(tokens[-1][:, chosen], parents.expand(num_rows, -1), widest)
                above = scores[-1][:, chosen]
                places = {path: place for place, path in enumerate(growing)}
                slots |= {path: len(slots) - 1 + place for place, path in enumerate(growing)}
        nodes = [path for level in levels for path in level]
        number = {path: place for place, path in enumerate(nodes)} | {(): -1}
        hangs_from = torch.tensor([number[path[:-1]] for path in nodes], device=device)
        return Draft(
            tokens=torch.cat(tokens, 1),
            parents=hangs_from.expand(num_rows, -1),
            size=torch.full((num_rows,), len(nodes), device=device),
            confidence=torch.cat(scores, 1).exp(),
            num_levels=len(levels),
        )


def _best(scores: Tensor, count: int) -> Tensor:
    """Indices [B, count] of the highest scores, best first; of equal ones the lower index."""
    return scores.sort(dim=1, descending=True, stable=True).indices[:, :count]
