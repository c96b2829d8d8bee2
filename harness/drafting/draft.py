"""Draft: a batch of token trees, and everything that follows from a tree without asking the model.

Shapes: B sequences, n drafted nodes (padded to the largest draft of the batch), r riders, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.functional import pad


@dataclass(frozen=True, kw_only=True)
class TreeShape:
    """Token trees without their tokens: the structure and the drafter's confidence in it."""

    parents: Tensor
    """[B, n] int64: index of each node's parent, -1 for the pending token. Parents come before children."""
    size: Tensor
    """[B] int64: number of nodes in each row, 0 to n; entries at and after it are padding."""
    confidence: Tensor | None = None
    """[B, n]: the drafter's own estimate of the probability that a node is kept. The loop only stores it; a
    `DraftPolicy` may decide by it."""
    is_chain: bool = False
    """Whether every node's parent is the node before it, which lets the acceptor skip work."""
    num_levels: int | None = None
    """An upper bound on the depth where the drafter knows one, which spares a device-to-host read; None
    stands for n."""

    @property
    def width(self) -> int:
        """n, the number of nodes in the rectangle."""
        return self.parents.shape[1]

    @cached_property
    def real(self) -> Tensor:
        """[B, n] bool: nodes that are not padding."""
        return torch.arange(self.width, device=self.parents.device) < self.size[:, None]

    @cached_property
    def ancestors(self) -> Tensor:
        """[B, n, n] bool: entry (i, j) says that j is i or an ancestor of i. Padding sees only itself."""
        rows, n = self.parents.shape
        eye = torch.eye(n, dtype=torch.bool, device=self.parents.device)
        if self.is_chain:
            closure = eye.new_ones(n, n).tril().expand(rows, n, n)
        else:
            # One step to the parent, squared until every path of length <= n is covered.
            # (`one_hot` would make the host read its values.)
            step = (self.parents[..., None] == torch.arange(n, device=eye.device)) | eye
            closure = step
            for _ in range(max(n - 1, 1).bit_length()):
                closure = (closure.float() @ closure.float()) > 0
        return torch.where(self.real[:, :, None], closure, eye)

    @cached_property
    def depths(self) -> Tensor:
        """[B, n] int64: 1 for a child of the pending token."""
        if self.is_chain:
            return torch.arange(1, self.width + 1, device=self.parents.device).expand_as(self.parents)
        return self.ancestors.sum(-1)


@dataclass(frozen=True, kw_only=True)
class Riders:
    """Tokens that ride along in the forward that verifies a draft, without being part of its tree.

    Examples are the Jacobi window of Lookahead decoding (Fu et al. 2024, arXiv 2402.02057) and the mask
    tokens of multi-token prediction. Every rider sees the whole committed context. No node sees a rider, so
    riders cannot change what is emitted: the acceptor is not shown their logits, and the cache does not keep
    them. The drafter finds their logits in `Outcome.rider_logits`.
    """

    tokens: Tensor
    """[B, r] int64: token ids."""
    offsets: Tensor
    """[B, r] int64: positions relative to that of the pending token, from 0."""
    visible: Tensor
    """[B, r, 1+n+r] bool: which of the pending token, the nodes and the riders each rider sees. A rider sees
    itself."""

    @property
    def width(self) -> int:
        """r, the number of riders of every sequence."""
        return self.tokens.shape[1]

    def with_nodes(self, index: Tensor) -> Riders:
        """The same riders beside other nodes.

        index [B, m] int64: for each new node, the column of `visible` that it had; -1 for a node that no
        rider sees.
        """
        num_nodes = self.visible.shape[-1] - 1 - self.width
        pending, nodes, riders = self.visible.split_with_sizes([1, num_nodes, self.width], dim=-1)
        columns = index[:, None].expand(-1, self.width, -1)
        seen = pad(nodes, (1, 0)).gather(-1, columns + 1)
        return replace(self, visible=torch.cat([pending, seen, riders], dim=-1))


@dataclass(frozen=True, kw_only=True)
class Draft(TreeShape):
    """Token trees that hang from each sequence's pending token."""

    tokens: Tensor
    """[B, n] int64: drafted token ids. Siblings are distinct."""
    probs: Tensor | None = None
    """[B, n, V]: the distribution that each token was drawn from, given its parent, after temperature and
    filters. None stands for a point mass: the token was chosen, not sampled."""
    riders: Riders | None = None
    """Tokens that share the forward without being part of the tree."""

    @classmethod
    def chain(cls, tokens: Tensor, size: Tensor) -> Draft:
        """One path per sequence: tokens [B, n], of which the first `size` [B] count."""
        parents = torch.arange(-1, tokens.shape[1] - 1, device=tokens.device)
        return cls(tokens=tokens, parents=parents.expand_as(tokens), size=size, is_chain=True)

    @classmethod
    def empty(cls, num_rows: int, device: torch.device) -> Draft:
        """No nodes for any of `num_rows` sequences: the round of plain autoregression."""
        tokens = torch.zeros(num_rows, 0, dtype=torch.int64, device=device)
        return cls.chain(tokens, torch.zeros(num_rows, dtype=torch.int64, device=device))

    def padded(self, width: int) -> Draft:
        """The same trees in a rectangle of at least `width` nodes."""
        more = width - self.width
        if more <= 0:
            return self
        tokens = pad(self.tokens, (0, more))
        new_parents = torch.arange(self.width - 1, width - 1, device=tokens.device).expand(len(tokens), more)
        riders = self.riders
        if riders:
            index = torch.arange(self.width, device=tokens.device).expand_as(self.tokens)
            riders = riders.with_nodes(pad(index, (0, more), value=-1))
        return replace(
            self,
            tokens=tokens,
            parents=torch.cat([self.parents, new_parents], dim=1),
            probs=None if self.probs is None else pad(self.probs, (0, 0, 0, more)),
            confidence=None if self.confidence is None else pad(self.confidence, (0, more)),
            riders=riders,
        )

    def repeated(self, times: int) -> Draft:
        """The trees of all sequences, then the same again, so often in all."""
        riders = self.riders
        if riders:
            parts = {name: getattr(riders, name) for name in ("tokens", "offsets", "visible")}
            riders = Riders(**{name: torch.cat([part] * times) for name, part in parts.items()})
        return Draft(
            tokens=self.tokens.repeat(times, 1),
            parents=self.parents.repeat(times, 1),
            size=self.size.repeat(times),
            is_chain=self.is_chain,
            num_levels=self.num_levels,
            riders=riders,
        )

    def with_rows(self, more: int) -> Draft:
        """The same trees, followed by `more` rows without nodes."""
        riders = self.riders
        if riders:
            # The riders of a row without context see one another, as attention over nothing is not a number.
            riders = Riders(
                tokens=pad(riders.tokens, (0, 0, 0, more)),
                offsets=pad(riders.offsets, (0, 0, 0, more)),
                visible=pad(riders.visible, (0, 0, 0, 0, 0, more), value=True),
            )
        return Draft(
            tokens=pad(self.tokens, (0, 0, 0, more)),
            parents=pad(self.parents, (0, 0, 0, more), value=-1),
            size=pad(self.size, (0, more)),
            is_chain=self.is_chain,
            num_levels=self.num_levels,
            riders=riders,
        )

    def copied(self) -> Draft:
        """The same trees in memory of their own."""
        copy = {
            name: value.clone()
            for name in ("tokens", "parents", "size", "probs", "confidence")
            if (value := getattr(self, name)) is not None
        }
        if self.riders:
            riders = self.riders
            copy["riders"] = Riders(
                tokens=riders.tokens.clone(), offsets=riders.offsets.clone(), visible=riders.visible.clone()
            )
        return replace(self, **copy)

    def restricted(self, keep: Tensor) -> Draft:
        """The nodes marked in `keep` [B, n] bool whose ancestors are all marked, in their old order.

        The rectangle shrinks to the largest remaining tree, so the host reads one number.
        """
        stays = (keep[:, None, :] | ~self.ancestors).all(-1) & self.real
        size = stays.sum(-1)
        width = int(size.max()) if self.width else 0
        order = (~stays).to(torch.int8).argsort(dim=-1, stable=True)[:, :width]
        # The new number of every node that stays, behind a -1 for the pending token.
        number = pad(stays.cumsum(-1) - 1, (1, 0), value=-1)
        parents = number.gather(1, self.parents.gather(1, order) + 1)
        real = torch.arange(width, device=size.device) < size[:, None]
        parents = self.parents[:, :width] if self.is_chain else torch.where(real, parents, -1)
        index = torch.where(real, order, -1)
        probs = self.probs
        return replace(
            self,
            tokens=self.tokens.gather(1, order),
            parents=parents,
            size=size,
            probs=None
            if probs is None
            else probs.gather(1, order[..., None].expand(-1, -1, probs.shape[-1])),
            confidence=None if self.confidence is None else self.confidence.gather(1, order),
            num_levels=None if self.num_levels is None else min(self.num_levels, width),
            riders=self.riders and self.riders.with_nodes(index),
        )

    @property
    def shape(self) -> TreeShape:
        """The trees without their tokens."""
        return TreeShape(
            parents=self.parents,
            size=self.size,
            confidence=self.confidence,
            is_chain=self.is_chain,
            num_levels=self.num_levels,
        )

    @property
    def num_riders(self) -> int:
        """r, the number of riders of every sequence."""
        return self.riders.width if self.riders else 0

    @property
    def forward_ids(self) -> Tensor:
        """[B, n+r] int64: the tokens that the target reads after the pending one: nodes, then riders."""
        return torch.cat([self.tokens, self.riders.tokens], dim=1) if self.riders else self.tokens

    @property
    def forward_offsets(self) -> Tensor:
        """[B, n+r] int64: their positions relative to that of the pending token."""
        return torch.cat([self.depths, self.riders.offsets], dim=1) if self.riders else self.depths

    @property
    def visible(self) -> Tensor:
        """[B, 1+n+r, 1+n+r] bool: which of the pending token, the nodes and the riders each of them sees."""
        new = 1 + self.width
        seen = torch.ones(len(self.tokens), new, new, dtype=torch.bool, device=self.tokens.device).tril()
        if self.width:
            seen[:, 1:, 1:] = self.ancestors
        if self.riders:
            seen = torch.cat([pad(seen, (0, self.riders.width)), self.riders.visible], dim=1)
        return seen

    def split(self, logits: Tensor) -> tuple[Tensor, Tensor | None]:
        """Logits [B, 1+n+r, V] as those of the tree [B, 1+n, V] and those of the riders [B, r, V]."""
        if not self.riders:
            return logits, None
        tree, riders = logits.split_with_sizes([1 + self.width, self.riders.width], dim=1)
        return tree, riders

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
        if self.riders:
            self._check_riders(self.riders, vocab_size)

    def _check_riders(self, riders: Riders, vocab_size: int) -> None:
        rows, r = len(self.tokens), riders.width
        assert riders.tokens.shape == riders.offsets.shape == (rows, r), "riders: wrong shape"
        assert riders.visible.shape == (rows, r, 1 + self.width + r), "riders.visible: wrong shape"
        assert bool(((riders.tokens >= 0) & (riders.tokens < vocab_size)).all()), (
            "riders: token outside the vocabulary"
        )
        assert bool((riders.offsets >= 0).all()), "riders: a position before that of the pending token"
        itself = riders.visible[..., 1 + self.width :].diagonal(dim1=-2, dim2=-1)
        assert bool(itself.all()), "riders: one does not see itself"
