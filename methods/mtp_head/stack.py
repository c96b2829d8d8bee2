"""Several heads of one checkpoint, each of which guesses one token further than the one before.

DeepSeek-V3 (arXiv 2412.19437, section 2.2) trains head j on the states of head j - 1 and on tokens one place
further: its row i reads the token i + 1 + j. Every head has a cache of its own with such rows of true tokens,
one row fewer than the head before it, whose last state waits for its token. In a draft, head d guesses
behind the nodes of level d, and the last head behind all deeper ones, from its own states. Heads are numbered
from 0, which guesses behind the pending token.

Where this departs from the training: behind level d, head d would see d - 1 rows that read guessed tokens
between its cached ones and the node; only the node's own is computed. Two heads have no such row.

Shapes: B sequences, m rows, k nodes, c children, H hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad
from typing_extensions import override

from harness.drafting.trees import Proposals
from methods.shared.eagle.growth import Growth
from methods.shared.eagle.steps import HeadSteps


class Stack:
    """The further heads, what is in their caches, and the states that wait for a token."""

    def __init__(self, heads: Sequence[HeadSteps], hidden_size: int, like: Tensor) -> None:
        """like: a tensor of the dtype and device of states."""
        self.heads, self._size, self._like = heads, hidden_size, like

    def reset(self, num_rows: int) -> None:
        """Empty sequences begin."""
        for head in self.heads:
            head.cache.clear(num_rows)
        self.waiting = [self._like.new_zeros(num_rows, self._size) for _ in self.heads]
        """Per head, the last state [B, H] of the head before it."""
        self.fresh = [[True] * num_rows for _ in self.heads]
        """Per head, the sequences for which nothing waits yet."""

    def begin(self, row: int) -> None:
        """Another sequence begins in this row."""
        for head, fresh in zip(self.heads, self.fresh, strict=True):
            head.cache.lengths[row] = 0
            fresh[row] = True

    def keep(self, rows: list[int]) -> None:
        """Continue with these sequences only, in this order."""
        for head in self.heads:
            head.cache.keep(rows)
        self.waiting = [state[rows] for state in self.waiting]
        self.fresh = [[fresh[row] for row in rows] for fresh in self.fresh]

    def shifted(
        self, number: int, rows: slice, states: Tensor, tokens: Tensor, counts: Sequence[int]
    ) -> tuple[Tensor, Tensor, list[int]]:
        """States, tokens and counts of the rows that a further head reads, from those of the head before it.

        states [b, m, H], tokens [b, m], of which the first `counts[b]` of each of the sequences `rows` count.
        """
        fresh, waiting = self.fresh[number][rows], self.waiting[number][rows]
        before = torch.cat([waiting[:, None], states], dim=1)
        skipped = torch.tensor(fresh, device=tokens.device).long()[:, None]
        place = (torch.arange(tokens.shape[1], device=tokens.device) + skipped).clamp(max=tokens.shape[1] - 1)
        read = before.gather(1, place[..., None].expand(-1, -1, states.shape[-1]))
        left = [max(count - new, 0) for count, new in zip(counts, fresh, strict=True)]
        for row, count in enumerate(counts):
            if count:
                self.waiting[number][rows][row] = states[row, count - 1]
        self.fresh[number][rows] = [new and not count for new, count in zip(fresh, counts, strict=True)]
        return read, tokens.gather(1, place), left


class StackGrowth(Growth):
    """One round of several heads: what is fed passes through all of them, each level of the tree through
    one."""

    def __init__(self, steps: HeadSteps, stack: Stack, row: int | None = None) -> None:
        """row: see `Growth`."""
        super().__init__(steps, row)
        self._stack, self._level = stack, 0

    @override
    def feed(self, features: Tensor, tokens: Tensor, counts: Sequence[int] | Tensor) -> Tensor:
        assert not isinstance(counts, Tensor), "rounds of several heads are not captured"
        found = outputs = super().feed(features, tokens, counts)
        rest = list(counts)
        tokens = pad(tokens, (0, outputs.shape[1] - tokens.shape[1]))
        for number, head in enumerate(self._stack.heads):
            outputs, tokens, rest = self._stack.shifted(number, self._rows, outputs, tokens, rest)
            outputs = Growth(head, self._row).feed(outputs, tokens, rest)[:, : tokens.shape[1]]
        self._level = 0
        return found

    @override
    def rewind(self) -> None:
        super().rewind()
        self._level = 0

    @override
    def expand(self, tokens: Tensor, parents: Tensor, num_children: int) -> Proposals:
        """The best children of nodes of the next level; see `Grower`."""
        heads, self._level = self._stack.heads, self._level + 1
        head, last = heads[min(self._level, len(heads)) - 1], self._level >= len(heads)
        num_rows, num_nodes = tokens.shape
        rows = torch.arange(num_rows, device=tokens.device)[:, None]
        states, above = self._outputs[rows, parents + 1], self._seen[rows, parents + 1]
        itself = torch.eye(num_nodes, dtype=torch.bool, device=tokens.device).expand(num_rows, -1, -1)
        seen = torch.cat([above, itself], dim=-1)
        # The rows of guesses that are left out keep their positions.
        offsets = seen.sum(-1) - 1 + min(self._level, len(heads)) - 1
        outputs = head.run(self._rows, tokens, states, offsets, seen)
        self._outputs = torch.cat([self._outputs, outputs], dim=1)
        if last:
            self._seen = torch.cat([pad(self._seen, (0, num_nodes)), seen], dim=1)
        else:
            # The next level has another head, whose cache holds none of these rows.
            self._seen = pad(self._seen, (0, 0, 0, num_nodes))
        return head.best(outputs, num_children)
