"""Trie forest: what followed each token in prompts and outputs, with counts.

Zhao et al. 2024 (arXiv 2312.12728), as PainlessInferenceAcceleration does it. Each token has a trie of the
branches that followed it; every node counts how often prompts and outputs went through it.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

Selection = Literal["upstream", "nodes"]
"""Which nodes of a crowded trie are drafted; see `TrieForest.draft`."""


@dataclass(slots=True)
class _Node:
    prompts: int = 0
    outputs: int = 0
    children: dict[int, _Node] = field(default_factory=dict)

    @property
    def counts(self) -> bool:
        """Whether anything that is remembered went through it."""
        return self.prompts > 0 or self.outputs > 0


@dataclass(kw_only=True)
class TrieForest:
    """A trie per token; grows with prompts and, `branch_length` tokens late, with outputs."""

    branch_length: int = 12
    """Deepest level of a draft; branches are stored one token longer."""
    num_nodes: int = 64
    """Most nodes of a draft, the pending token among them."""
    output_weight: float = 1e-4
    """Share of output counts in a node's weight; prompts have the rest."""
    selection: Selection = "upstream"
    end_token_ids: Collection[int] = ()
    """What follows one of these is not stored."""

    def __post_init__(self) -> None:
        self._tries: dict[int, _Node] = {}
        self._buffer: list[int] = []
        self._prompted: set[int] = set()

    def insert_prompt(self, ids: Sequence[int]) -> None:
        """Store the branches of a prompt."""
        ids = self._before_end(ids)
        for place in range(len(ids) - 1):
            self._prompted.add(ids[place])
            for node in self._branch(ids, place):
                node.prompts += 1

    def push(self, ids: Sequence[int]) -> None:
        """Append output tokens; a branch is stored once it is complete."""
        self._buffer += self._before_end(ids)
        self._store(self.branch_length + 1)
        self._buffer = self._buffer[-(self.branch_length + 1) :]

    def end_call(self) -> None:
        """Store the branches that are not complete, and forget the counts of prompts."""
        self._store(1)
        self._buffer = []
        for token in self._prompted:
            for node, _ in _below(self._tries[token]):
                node.prompts = 0
        self._prompted.clear()

    def draft(self, query: Sequence[int]) -> tuple[list[int], list[int]]:
        """Tokens and parents (-1: the last token of `query`) of the tree that may follow `query`.

        The trie of the first token of the query is tried first, and a later one only where the tree has fewer
        than `branch_length` nodes, the pending token counted. A trie with more than `num_nodes` nodes is
        thinned: as many nodes as half a draft stay by their output counts, with all that equal the last of
        them. `upstream` keeps no others; `nodes` fills the draft up with the largest weights. Children are
        visited by weight, depth first.
        """
        found: tuple[list[int], list[int]] = ([], [])
        for place, token in enumerate(query):
            top: _Node | None = self._tries.get(token)
            if top is None:
                continue
            for following in query[place + 1 :]:
                child: _Node | None = top.children.get(following) if top else None
                top = child if child is not None and child.counts else None
            found = self._tree(top) if top is not None else ([], [])
            if 1 + len(found[0]) >= self.branch_length:
                break
        return found

    def _tree(self, top: _Node) -> tuple[list[int], list[int]]:
        least_outputs, least_weight = self._thresholds(top)
        tokens: list[int] = []
        parents: list[int] = []

        def visit(node: _Node, parent: int, depth: int) -> None:
            ranked = sorted(node.children.items(), key=lambda item: -self._weight(item[1]))
            for token, child in ranked:
                if 1 + len(tokens) >= self.num_nodes or depth > self.branch_length:
                    return
                if child.outputs < least_outputs and self._weight(child) < least_weight:
                    continue
                tokens.append(token)
                parents.append(parent)
                visit(child, len(tokens) - 1, depth + 1)

        visit(top, -1, 1)
        return tokens, parents

    def _thresholds(self, top: _Node) -> tuple[float, float]:
        """A node is left out with its subtree if it has fewer outputs and less weight than these."""
        nodes = [(node, token) for node, token in _below(top) if node.counts]
        if len(nodes) <= self.num_nodes:
            return 0, 0
        half = self.num_nodes // 2
        by_outputs = sorted(nodes, key=lambda item: -item[0].outputs)
        least_outputs = by_outputs[half - 1][0].outputs
        if self.selection == "upstream":
            return least_outputs, math.inf
        return least_outputs, self._least_weight(nodes, by_outputs[:half])

    def _least_weight(self, nodes: list[tuple[_Node, int]], best: list[tuple[_Node, int]]) -> float:
        """The weight of the last node that fills a draft up, beside those that stay by their outputs."""
        chosen = {id(node) for node, _ in best}
        others = sorted((self._weight(node) for node, _ in nodes if id(node) not in chosen), reverse=True)
        return others[self.num_nodes - len(best) - 1]

    def _weight(self, node: _Node) -> float:
        return (1 - self.output_weight) * node.prompts + self.output_weight * node.outputs

    def _branch(self, ids: Sequence[int], place: int) -> Iterator[_Node]:
        """The nodes, made where they are missing, of what follows `ids[place]`."""
        node = self._tries.setdefault(ids[place], _Node())
        for token in ids[place + 1 : place + 2 + self.branch_length]:
            node = node.children.setdefault(token, _Node())
            yield node

    def _store(self, num_following: int) -> None:
        for place in range(len(self._buffer) - num_following):
            for node in self._branch(self._buffer, place):
                node.outputs += 1

    def _before_end(self, ids: Sequence[int]) -> list[int]:
        end = next((place for place, token in enumerate(ids) if token in self.end_token_ids), len(ids))
        return list(ids[:end])


def _below(top: _Node) -> Iterator[tuple[_Node, int]]:
    """Nodes below `top` and their tokens, depth first, in the order in which they were made."""
    for token, child in top.children.items():
        yield child, token
        yield from _below(child)
