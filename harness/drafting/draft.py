"""Draft: a batch of token trees, and what can be said of a tree without looking at the model.

Shapes: B sequences, n drafted nodes (padded to the batch's largest draft).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Draft:
    """Token trees that hang from each sequence's pending token.

    tokens [B, n] int64: drafted token ids; entries at and after `size` are padding.
    parents [B, n] int64: index of each node's parent, -1 for the pending token. Parents come before
        children and siblings are distinct tokens.
    size [B] int64: nodes of each row, 0 to n.
    probs: the law each token was drawn from, given its parent, after temperature and filters
        [B, n, V]; None means a point mass (the token was chosen, not sampled).
    confidence [B, n]: the drafter's own estimate that a node is kept; only written down.
    is_chain: every node's parent is the node before it (lets the acceptor skip work).
    num_levels: a bound on the depth where the drafter knows one (spares the host a look); n otherwise.
    """

    tokens: Tensor
    parents: Tensor
    size: Tensor
    probs: Tensor | None = None
    confidence: Tensor | None = None
    is_chain: bool = False
    num_levels: int | None = None

    @classmethod
    def chain(cls, tokens: Tensor, size: Tensor) -> Draft:
        """One path per sequence: tokens [B, n], of which the first `size` [B] count."""
        parents = torch.arange(-1, tokens.shape[1] - 1, device=tokens.device)
        return cls(tokens=tokens, parents=parents.expand_as(tokens), size=size, is_chain=True)

    @classmethod
    def empty(cls, num_rows: int, device: torch.device) -> Draft:
        """Nothing drafted for any of `num_rows` sequences: the round of plain autoregression."""
        tokens = torch.zeros(num_rows, 0, dtype=torch.int64, device=device)
        return cls.chain(tokens, torch.zeros(num_rows, dtype=torch.int64, device=device))

    def padded(self, width: int) -> Draft:
        """The same trees in a rectangle of at least `width` nodes."""
        more = width - self.width
        if more <= 0:
            return self
        tokens = torch.nn.functional.pad(self.tokens, (0, more))
        new_parents = torch.arange(self.width - 1, width - 1, device=tokens.device).expand(len(tokens), more)
        return replace(
            self,
            tokens=tokens,
            parents=torch.cat([self.parents, new_parents], dim=1),
            probs=None if self.probs is None else torch.nn.functional.pad(self.probs, (0, 0, 0, more)),
            confidence=None
            if self.confidence is None
            else torch.nn.functional.pad(self.confidence, (0, more)),
        )

    def with_rows(self, more: int) -> Draft:
        """The same trees, and behind them as many rows with nothing drafted."""
        return Draft(
            tokens=torch.nn.functional.pad(self.tokens, (0, 0, 0, more)),
            parents=torch.nn.functional.pad(self.parents, (0, 0, 0, more), value=-1),
            size=torch.nn.functional.pad(self.size, (0, more)),
            is_chain=self.is_chain,
            num_levels=self.num_levels,
        )

    def copied(self) -> Draft:
        """The same trees in memory of their own."""
        copy = {
            name: value.clone()
            for name in ("tokens", "parents", "size", "probs", "confidence")
            if (value := getattr(self, name)) is not None
        }
        return replace(self, **copy)

    @property
    def width(self) -> int:
        """n, the nodes of the rectangle."""
        return self.tokens.shape[1]

    @cached_property
    def real(self) -> Tensor:
        """[B, n] bool: nodes that are not padding."""
        return torch.arange(self.width, device=self.tokens.device) < self.size[:, None]

    @cached_property
    def ancestors(self) -> Tensor:
        """[B, n, n] bool: entry (i, j) says that j is i or an ancestor of i. Padding sees itself only."""
        rows, n = self.tokens.shape
        eye = torch.eye(n, dtype=torch.bool, device=self.tokens.device)
        if self.is_chain:
            closure = eye.new_ones(n, n).tril().expand(rows, n, n)
        else:
            # One step to the parent, squared until every path of length <= n is covered.
            # (`one_hot` would have the host look at its values.)
            step = (self.parents[..., None] == torch.arange(n, device=eye.device)) | eye
            closure = step
            for _ in range(max(n - 1, 1).bit_length()):
                closure = (closure.float() @ closure.float()) > 0
        return torch.where(self.real[:, :, None], closure, eye)

    @property
    def visible(self) -> Tensor:
        """[B, 1+n, 1+n] bool: which of the pending token and the nodes each of them sees."""
        new = 1 + self.width
        seen = torch.ones(len(self.tokens), new, new, dtype=torch.bool, device=self.tokens.device).tril()
        if self.width:
            seen[:, 1:, 1:] = self.ancestors
        return seen

    @cached_property
    def depths(self) -> Tensor:
        """[B, n] int64: 1 for a child of the pending token."""
        if self.is_chain:
            return torch.arange(1, self.width + 1, device=self.tokens.device).expand_as(self.tokens)
        return self.ancestors.sum(-1)

    def check(self, vocab_size: int) -> None:
        """Raise AssertionError where the trees are not legal (host-side; for tests and debugging)."""
        rows, n = self.tokens.shape
        assert self.parents.shape == (rows, n), "parents: wrong shape"
        assert self.size.shape == (rows,), "size: wrong shape"
        for b in range(rows):
            size = int(self.size[b])
            assert 0 <= size <= n, f"row {b}: size {size} outside 0..{n}"
            tokens, parents = self.tokens[b, :size].tolist(), self.parents[b, :size].tolist()
            for i, parent in enumerate(parents):
                assert -1 <= parent < i, f"row {b}, node {i}: parent {parent} does not come before it"
                assert 0 <= tokens[i] < vocab_size, f"row {b}, node {i}: token outside the vocabulary"
                assert not self.is_chain or parent == i - 1, f"row {b}, node {i}: not a chain"
            pairs = list(zip(parents, tokens, strict=True))
            assert len(set(pairs)) == len(pairs), f"row {b}: siblings with the same token"
