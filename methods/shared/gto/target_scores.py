"""What the target says of drafted trees: all trees of a packed row in one forward.

Trees of one place share nodes, within a tree and between the drafter and its reference. The target reads
every node once, and no leaf, because nothing hangs from it.

Shapes: L tokens of a packed row, B places, n nodes of a draft, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from harness.drafting.draft import Draft
from harness.drafting.drafter import TargetView
from harness.drafting.trainable import TrainingRow

_MOST_READ = 8192
"""Tokens of a forward, whose mask is quadratic: places are divided among several where they need more."""
_ROWS = 512
"""Rows of logits that are held at once."""


class Scored(NamedTuple):
    """The target's judgement of the nodes of a draft."""

    probs: Tensor
    """[B, n] float64: the probability of a node after its parent, at temperature 1."""
    likeliest: Tensor
    """[B, n] bool: whether it is the most probable token there."""


@dataclass
class _Trie:
    """The union of the trees of one place."""

    place: int
    tokens: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    """Node that each node hangs from, -1 for the pending token."""
    children: dict[tuple[int, int], int] = field(default_factory=dict)
    """Node by its parent and its token."""

    def add(self, tokens: Sequence[int], parents: Sequence[int]) -> list[int]:
        """The nodes of a tree, new ones where the union has none."""
        nodes: list[int] = []
        for token, parent in zip(tokens, parents, strict=True):
            key = (nodes[parent] if parent >= 0 else -1, token)
            if key not in self.children:
                self.children[key] = len(self.tokens)
                self.tokens.append(token)
                self.parents.append(key[0])
            nodes.append(self.children[key])
        return nodes

    @property
    def inner(self) -> list[int]:
        """Nodes with children, parents first."""
        return sorted(set(self.parents) - {-1})


def scored(target: TargetView, row: TrainingRow, places: Tensor, drafts: Sequence[Draft]) -> list[Scored]:
    """The judgement of several drafts, each with a tree for every place of `places` [B]."""
    tries = [_Trie(place) for place in places.tolist()]
    nodes = [
        [
            trie.add(tokens[:size], parents[:size])
            for trie, tokens, parents, size in zip(
                tries, draft.tokens.tolist(), draft.parents.tolist(), draft.size.tolist(), strict=True
            )
        ]
        for draft in drafts
    ]
    probs, likeliest = _of_nodes(target, row, tries)
    return [_spread(draft, own, probs, likeliest) for draft, own in zip(drafts, nodes, strict=True)]


def _spread(
    draft: Draft, nodes: Sequence[Sequence[int]], probs: Sequence[Tensor], likeliest: Sequence[Tensor]
) -> Scored:
    """The judgement of the union's nodes, handed to those of a draft."""
    device = draft.tokens.device
    found = Scored(
        torch.zeros(draft.tokens.shape, dtype=torch.float64),
        torch.zeros(draft.tokens.shape, dtype=torch.bool),
    )
    for place, own in enumerate(nodes):
        found.probs[place, : len(own)] = probs[place][own]
        found.likeliest[place, : len(own)] = likeliest[place][own]
    return Scored(*(part.to(device) for part in found))


def _of_nodes(
    target: TargetView, row: TrainingRow, tries: Sequence[_Trie]
) -> tuple[list[Tensor], list[Tensor]]:
    """Probability and likeliest token, per place the values of all nodes of its union."""
    probs: list[Tensor] = []
    likeliest: list[Tensor] = []
    begin = 0
    while begin < len(tries):
        end, size = begin + 1, len(row.ids) + len(tries[begin].inner)
        while end < len(tries) and size + len(tries[end].inner) <= _MOST_READ:
            size += len(tries[end].inner)
            end += 1
        some = tries[begin:end]
        counts = [len(trie.tokens) for trie in some]
        found = _one_forward(target, row, some)
        probs += torch.split(found.probs, counts)
        likeliest += torch.split(found.likeliest, counts)
        begin = end
    return probs, likeliest


def _one_forward(target: TargetView, row: TrainingRow, tries: Sequence[_Trie]) -> Scored:
    """The nodes of all tries, one after the other, from a forward over their documents and inner nodes."""
    device = row.ids.device
    context = _context(row, [trie.place for trie in tries])
    # Where each token of the row lies in the forward.
    column = torch.full_like(row.ids, -1)
    column[context] = torch.arange(len(context), device=device)
    columns = column.tolist()
    base, own_begin = row.positions.tolist(), len(context)
    ids: list[int] = []
    positions: list[int] = []
    sees: list[tuple[int, list[int]]] = []
    asked: list[int] = []
    tokens: list[int] = []
    for trie in tries:
        pending = trie.place + 1
        at = {-1: columns[pending]}
        seen: dict[int, list[int]] = {-1: []}
        depth = {-1: 0}
        for node in trie.inner:
            parent = trie.parents[node]
            at[node], depth[node] = own_begin + len(ids), depth[parent] + 1
            seen[node] = [*seen[parent], at[node]]
            ids.append(trie.tokens[node])
            positions.append(base[pending] + depth[node])
            sees.append((pending, seen[node]))
        asked += [at[parent] for parent in trie.parents]
        tokens += trie.tokens
    visible = _visible(row, context, sees)
    states = target.trace_visible(
        torch.cat([row.ids[context], torch.tensor(ids, dtype=torch.int64, device=device)]),
        torch.cat([row.positions[context], torch.tensor(positions, dtype=torch.int64, device=device)]),
        visible,
    )
    return _judged(target, states, torch.tensor(asked, device=device), torch.tensor(tokens, device=device))


def _context(row: TrainingRow, places: Sequence[int]) -> Tensor:
    """The tokens of the row that the trees of `places` see, pending tokens included."""
    last = torch.full_like(row.ids, -1)
    pending = torch.tensor(places, device=row.ids.device) + 1
    # The last pending token of each document, which all of its tokens are compared with.
    ends = last.scatter_reduce(0, row.document[pending], pending, "amax")
    number = torch.arange(len(row.ids), device=row.ids.device)
    return (number <= ends[row.document]).nonzero()[:, 0]


def _visible(row: TrainingRow, context: Tensor, sees: Sequence[tuple[int, list[int]]]) -> Tensor:
    """[n, n] bool: tokens see their document so far; nodes also their pending token's, and their path."""
    device, num_context = row.ids.device, len(context)
    size = num_context + len(sees)
    # A node sees of the row what its pending token sees.
    origin = torch.cat([context, torch.tensor([one for one, _ in sees], dtype=torch.int64, device=device)])
    visible = torch.zeros(size, size, dtype=torch.bool, device=device)
    visible[:, :num_context] = (row.document[origin][:, None] == row.document[context]) & (
        context <= origin[:, None]
    )
    pairs = [(num_context + node, column) for node, (_, path) in enumerate(sees) for column in path]
    if pairs:
        rows, columns = torch.tensor(pairs, device=device).T
        visible[rows, columns] = True
    return visible


def _judged(target: TargetView, states: Tensor, asked: Tensor, tokens: Tensor) -> Scored:
    """The judgement of tokens that each follow the state of the given number."""
    wanted, which = torch.unique(asked, return_inverse=True)
    probs = torch.zeros(len(tokens), dtype=torch.float64, device=states.device)
    likeliest = torch.zeros(len(tokens), dtype=torch.bool, device=states.device)
    for begin in range(0, len(wanted), _ROWS):
        logits = target.lm_head(states[wanted[begin : begin + _ROWS]]).float()
        here = ((which >= begin) & (which < begin + _ROWS)).nonzero()[:, 0]
        rows, drafted = which[here] - begin, tokens[here]
        probs[here] = (logits[rows, drafted] - logits.logsumexp(-1)[rows]).double().exp()
        likeliest[here] = logits.argmax(-1)[rows] == drafted
    return Scored(probs.cpu(), likeliest.cpu())
