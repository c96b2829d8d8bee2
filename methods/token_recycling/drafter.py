"""Token Recycling: draft a fixed tree of what the target last held likely after each token.

Luo et al. 2024, "Turning Trash into Treasure: Accelerating Inference of Large Language Models with Token
Recycling" (arXiv 2408.08696). The target's logits at every verified node, rejected ones included, say which k
tokens it holds most likely after the token of that node. A table of V rows keeps the latest k for each token,
and a static tree of 80 nodes is filled from it level by level.

Departures from the authors' code: where an unseen token has a row of zeros, the code drafts the id 0 several
times as siblings; here equal paths are merged, which accepts the same tokens. Where one token stands at
several nodes, the last one in the order of the tree is kept on every device; an indexed write on a GPU leaves
that open. The code begins with the last prompt token as its root, the loop with the first token of the
answer. The variant inside SAM Decoding also learns from the prompt (`learns_prompt`), from a smaller tree.
With `memory=process` the table is never cleared, as in the authors' code, and every later sequence profits.

Shapes: B sequences, n drafted nodes, k successors, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, field_validator
from torch import Tensor
from typing_extensions import override

from harness.config import ConfigError, configurable
from harness.drafting.draft import Draft, TreeShape
from harness.drafting.drafter import Drafter, HiddenTap, Outcome, Scope, TargetView
from harness.drafting.sequence_drafter import batched
from methods.shared.likeliest import HEAD_INPUT, likeliest, likeliest_after
from methods.shared.memory import MemoryScope, is_shared
from methods.shared.vocabulary import refuse_small_vocabulary

Levels = tuple[tuple[int, ...], ...]

_CHILDREN: Levels = (
    (8,),
    (8, 4, 3, 2, 1, 1, 1, 1),
    (8, 3, 2, 1, 1, 1, 1, 1, 2, 1, 0, 0, 1, 0, 0, 1, 0, 1, 1, 0, 0),
    (5, 2, 1, 1, 1, 0, 0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1, 0, 0, 1, 1, 0, 0),
    (3, 1, 1, 0, 0, 1, 0, 0, 0, 0, 1, 0, 1, 0, 0),
    (2, 0, 0, 1, 0, 0, 0, 0),
)
"""The 80 nodes of the released tree (paper, appendix A): 8, 21, 25, 15, 8 and 3 by level."""


@configurable
class TokenRecycling(Drafter):
    """Drafts a static tree from a table of each token's likeliest successors."""

    top_k: int = Field(default=8, ge=2)
    """k, the successors that are kept for each token."""
    children: Levels = _CHILDREN
    """Per level and, within it, per node of the level above (the pending token first): how many children it
    has. Child number r is the successor of rank r."""

    learns_prompt: bool = False
    """Whether the successors of prompt tokens enter the table, too."""
    memory: MemoryScope = "question"
    """How long the table lasts. Sequences that may learn from one another share one."""

    @field_validator("children")
    @classmethod
    def _a_tree(cls, children: Levels) -> Levels:
        width = 1
        for depth, counts in enumerate(children, start=1):
            if len(counts) != width or min(counts, default=0) < 0 or not any(counts):
                raise ValueError(f"level {depth}: needs {width} numbers from 0, and not only zeros")
            width = sum(counts)
        if not children:
            raise ValueError("needs at least one level")
        return children

    def __post_init__(self) -> None:
        most = max(max(counts) for counts in self.children)
        if most > self.top_k:
            raise ConfigError(
                f"top_k={self.top_k}: the tree gives a node {most} children; type a larger top_k"
            )
        self._levels: list[tuple[Tensor, Tensor]] = []
        self._shared: Tensor | None = None
        self._same_question = False

    @property
    @override
    def scope(self) -> Scope:
        return self.memory

    @property
    @override
    def taps(self) -> tuple[HiddenTap, ...]:
        return (HEAD_INPUT,) if self.learns_prompt else ()

    @override
    def bind(self, target: TargetView) -> None:
        """Lay out the tree on the target's device.

        Raises:
            ConfigError: the vocabulary has fewer than k tokens.
        """
        super().bind(target)
        refuse_small_vocabulary(target, self.top_k)
        self._levels = []
        parents, first, begin = [-1], 0, 1
        for counts in self.children:
            above = [number for number, count in enumerate(counts) for _ in range(count)]
            ranks = [rank for count in counts for rank in range(count)]
            self._levels.append(
                (torch.tensor(above).to(target.device), torch.tensor(ranks).to(target.device))
            )
            parents += [first + number for number in above]
            first, begin = begin, begin + len(above)
        self._parents = torch.tensor(parents[1:]).to(target.device) - 1
        self._ranks = torch.cat([ranks for _, ranks in self._levels])
        shape = TreeShape(parents=self._parents[None], size=self._parents.new_tensor([len(self._parents)]))
        self._ancestors = shape.ancestors[0].float()

    @property
    def num_drafted(self) -> int | None:
        """All nodes on CUDA, where a fixed shape is one program; elsewhere the number varies."""
        return len(self._ranks) if self._target.device.type == "cuda" else None

    @override
    def new_call(self, keep_memory: bool) -> None:
        self._same_question = keep_memory
        if not keep_memory:
            self._shared = None

    @override
    def reset(self, num_rows: int) -> None:
        device = self._target.device
        self._is_shared = is_shared(self.effective_scope, self._same_question, num_rows)
        if not self._is_shared:
            self._table = self._empty(num_rows)
        else:
            if self._shared is None:
                self._shared = self._empty(1)
            self._table = self._shared
        self._pending = torch.zeros(num_rows, dtype=torch.int64, device=device)
        self._rows = self._table_rows(num_rows)

    def _empty(self, count: int) -> Tensor:
        """Tables [count, V+1, k]; the last row of each takes the writes of nodes that do not count."""
        shape = (count, self._target.vocab_size + 1, self.top_k)
        return torch.zeros(shape, dtype=torch.int64, device=self._target.device)

    def _table_rows(self, num_rows: int) -> Tensor:
        """The table of every sequence [B, 1]."""
        rows = torch.arange(num_rows, device=self._table.device)[:, None]
        return torch.zeros_like(rows) if self._is_shared else rows

    @override
    def propose(self, room: Sequence[int]) -> Draft:
        """Fill the tree by level: a child of rank r is the successor of rank r of its parent's token."""
        if self._pending.device.type != "cpu":
            return self._propose_on_device()
        # On so few numbers, Python is done before torch has begun.
        tables, rows = self._table.numpy(), self._rows[:, 0].tolist()
        pairs = zip(rows, self._pending.tolist(), strict=True)
        trees = [_tree(tables[row], pending, self.children) for row, pending in pairs]
        return replace(batched(trees, self._pending.device), num_levels=len(self._levels))

    def _propose_on_device(self) -> Draft:
        table, rows = self._table.flatten(), self._rows * self._table.shape[1]
        path = [self._pending[:, None]]
        for parents, ranks in self._levels:
            path.append(table.take((rows + path[-1][:, parents]) * self.top_k + ranks))
        ids = torch.cat(path, dim=1)
        # All entries of an unseen token's row are 0: its children of rank 1 and more repeat the first.
        first = (rows + ids[:, self._parents + 1]) * self.top_k
        repeats = (table.take(first) == table.take(first + 1)) & (self._ranks > 0)
        return self._merged(ids[:, 1:], repeats.float() @ self._ancestors.T > 0)

    def _merged(self, tokens: Tensor, again: Tensor) -> Draft:
        """The tree without nodes whose path another one has; `again` [B, n] says which these are."""
        n = tokens.shape[1]
        order = again.to(torch.int8).argsort(dim=-1, stable=True)
        place = (~again).cumsum(-1) - 1
        above = self._parents[order]
        parents = torch.where(above < 0, -1, place.gather(1, above.clamp(min=0)))
        size = n - again.sum(-1)
        # A padding node hangs from the node before it.
        index = torch.arange(n, device=tokens.device)
        parents = torch.where(index < size[:, None], parents, index - 1)
        return Draft(tokens=tokens.gather(1, order), parents=parents, size=size, num_levels=len(self._levels))

    @override
    def observe(self, outcome: Outcome) -> None:
        """Write the k likeliest successors at every verified node into the table, rejected nodes too."""
        fresh = torch.tensor(outcome.pending).to(self._pending.device, non_blocking=True)
        if outcome.rows is not None:
            # Other sequences have taken these places.
            if not self._is_shared:
                self._table[list(outcome.rows)] = 0
            elif self.effective_scope == "question" and not self._same_question:
                self._table.zero_()
            self._pending[list(outcome.rows)] = fresh
        else:
            if outcome.draft is not None and outcome.logits is not None:
                self._learn_round(outcome.draft, outcome.logits)
            self._pending = fresh
        if outcome.draft is None and self.learns_prompt:
            self._learn_prompts(outcome)

    def _learn_round(self, draft: Draft, logits: Tensor) -> None:
        ids = torch.cat([self._pending[:, None], draft.tokens], dim=1)
        if ids.device.type != "cpu":
            counts = torch.nn.functional.pad(draft.real, (1, 0), value=True)
            self._learn(self._rows, ids, counts, likeliest(logits, self.top_k))
            return
        # Only the rows that stay are searched: reading logits takes most of the time.
        latest: dict[int, int] = {}
        rows = zip((self._rows * self._table.shape[1] + ids).tolist(), draft.size.tolist(), strict=True)
        for row, (keys, size) in enumerate(rows):
            latest.update(zip(keys[: 1 + size], range(row * len(keys), (row + 1) * len(keys)), strict=False))
        best = likeliest(logits, self.top_k, list(latest.values()))
        self._table.flatten(0, 1).index_copy_(0, torch.tensor(list(latest)), best)

    def _learn_prompts(self, outcome: Outcome) -> None:
        best = likeliest_after(outcome.taps[0], self._target, self.top_k)
        longest = best.shape[1]
        padded = [ids + [0] * (longest - len(ids)) for ids in map(list, outcome.committed)]
        ids = torch.tensor(padded, device=best.device)
        sizes = torch.tensor([len(ids) for ids in outcome.committed], device=best.device)
        counts = torch.arange(longest, device=best.device) < sizes[:, None]
        rows = self._rows if outcome.rows is None else self._rows[list(outcome.rows)]
        self._learn(rows, ids, counts, best)

    def _learn(self, rows: Tensor, ids: Tensor, counts: Tensor, best: Tensor) -> None:
        """Write the successors `best` [B, m, k] of `ids` [B, m] where `counts` [B, m]; the last one stays."""
        num_tokens = self._table.shape[1]
        # One key for a token of a table; what does not count has the key of the row that is never read.
        keys = (rows * num_tokens + torch.where(counts, ids, num_tokens - 1)).flatten()
        places = torch.arange(len(keys), device=keys.device)
        last = torch.zeros(self._table.shape[:2], dtype=torch.int64, device=keys.device).flatten()
        last.scatter_reduce_(0, keys, places, "amax")
        self._table.flatten(0, 1)[keys] = best.flatten(0, 1).to(keys.device)[last[keys]]

    @override
    def keep(self, rows: Sequence[int]) -> None:
        self._pending = self._pending[list(rows)]
        if not self._is_shared:
            self._table = self._table[list(rows)]
        self._rows = self._table_rows(len(rows))


def _tree(table: NDArray[np.int64], pending: int, children: Levels) -> tuple[list[int], list[int]]:
    """Tokens and parents of the tree that `table` [V+1, k] gives below a token, equal paths merged."""
    tokens: list[int] = []
    parents: list[int] = []
    # Token and place of every node of a level; None stands for a node whose path another one has.
    level: list[tuple[int, int] | None] = [(pending, -1)]
    for counts in children:
        above, level = level, []
        for node, count in zip(above, counts, strict=True):
            if node is None or not count:
                level += [None] * count
                continue
            token, place = node
            successors: list[int] = table[token, : max(2, count)].tolist()
            # All entries of an unseen token's row are 0.
            num_distinct = 1 if successors[0] == successors[1] else count
            level += [(one, len(tokens) + rank) for rank, one in enumerate(successors[:num_distinct])]
            level += [None] * (count - num_distinct)
            tokens += successors[:num_distinct]
            parents += [place] * num_distinct
    return tokens, parents
