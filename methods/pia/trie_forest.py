"""Trie forest: what followed each token in prompts and outputs, with counts.

Zhao et al. 2024 (arXiv 2312.12728), as PainlessInferenceAcceleration does it. Each token has a trie of the
branches that followed it; every node counts how often prompts and outputs went through it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

Selection = Literal["upstream", "nodes", "released"]
"""Which nodes of a crowded trie are drafted; see `TrieForest.draft`."""


@dataclass(slots=True, eq=False)
class _Node:
    token: int
    prompts: int = 0
    outputs: int = 0
    children: dict[int, _Node] = field(default_factory=dict)

    @property
    def counts(self) -> bool:
        """Whether anything that is remembered went through it."""
        return self.prompts > 0 or self.outputs > 0


@dataclass(kw_only=True)
class TrieForest:
    """A trie per token."""

    branch_length: int = 12
    """Deepest level of a draft; branches are stored one token longer."""
    num_nodes: int = 64
    """Most nodes of a draft, the pending token among them."""
    output_weight: float = 1e-4
    """Share of output counts in a node's weight; prompts have the rest."""
    selection: Selection = "upstream"
    end_token_id: int | None = None
    """Neither this token nor what follows it is stored."""

    def __post_init__(self) -> None:
        self._tries: dict[int, _Node] = {}

    def count_prompt(self, ids: Sequence[int], by: int) -> None:
        """Count the branches of a prompt, `by` 1 to store and -1 to forget them."""
        ids = self.before_end(ids)
        for place in range(len(ids) - 1):
            for node in self._branch(ids, place):
                node.prompts += by

    def count_outputs(self, ids: Sequence[int], num_branches: int) -> None:
        """Store the branches that begin behind each of the first tokens of an output."""
        for place in range(num_branches):
            for node in self._branch(ids, place):
                node.outputs += 1

    def before_end(self, ids: Sequence[int]) -> list[int]:
        """The tokens before the first end token."""
        ids = list(ids)
        return ids[: ids.index(self.end_token_id)] if self.end_token_id in ids else ids

    def draft(self, query: Sequence[int]) -> tuple[list[int], list[int]]:
        """Tokens and parents (-1: the last token of `query`) of the tree that may follow `query`.

        The trie of the first token of the query is tried first, and a later one only where the tree has fewer
        than `branch_length` nodes, the pending token counted. A trie with more than `num_nodes` nodes is
        thinned: as many nodes as half a draft stay by their output counts, with all that equal the last of
        them. `upstream` keeps no others; `nodes` fills the draft up with the largest weights; `released` does
        so too, but counts nodes with the same token as one. Children are visited by weight, depth first.
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
            ranked = list(node.children.values())
            if len(ranked) > 1:
                ranked.sort(key=self._weight, reverse=True)
            for child in ranked:
                if 1 + len(tokens) >= self.num_nodes or depth > self.branch_length:
                    return
                if child.outputs < least_outputs and self._weight(child) < least_weight:
                    continue
                tokens.append(child.token)
                parents.append(parent)
                visit(child, len(tokens) - 1, depth + 1)

        visit(top, -1, 1)
        return tokens, parents

    def _thresholds(self, top: _Node) -> tuple[float, float]:
        """A node is left out with its subtree if it has fewer outputs and less weight than these."""
        nodes = [node for node in _below(top) if node.counts]
        if len(nodes) <= self.num_nodes:
            return 0, 0
        by_outputs = sorted(nodes, key=lambda node: node.outputs, reverse=True)[: self.num_nodes // 2]
        least_outputs = by_outputs[-1].outputs
        if self.selection == "upstream" or least_outputs == 0:
            return least_outputs, math.inf
        by_weight = sorted(nodes, key=self._weight, reverse=True)
        if self.selection == "released":
            return least_outputs, self._least_by_token(by_weight, {node.token for node in by_outputs})
        chosen = {id(node) for node in by_outputs}
        others = [node for node in by_weight if id(node) not in chosen]
        return least_outputs, self._weight(others[self.num_nodes - len(by_outputs) - 1])

    def _least_by_token(self, by_weight: list[_Node], tokens: set[int]) -> float:
        """The weight of the node with which a draft is full, where a token counts once.

        tokens: those of the nodes that stay by their outputs. The heaviest nodes add theirs; of as many nodes
        behind them as a draft has, every one with another token counts by itself.
        """
        rank = self.num_nodes - len(tokens)
        tokens = tokens | {node.token for node in by_weight[:rank]}
        missing = self.num_nodes - len(tokens)
        for node in by_weight[rank : rank + self.num_nodes]:
            if node.token not in tokens:
                missing -= 1
                if missing <= 0:
                    return self._weight(node)
        return math.inf

    def _weight(self, node: _Node) -> float:
        return (1 - self.output_weight) * node.prompts + self.output_weight * node.outputs

    def _branch(self, ids: Sequence[int], place: int) -> Iterator[_Node]:
        """The nodes, made where they are missing, of what follows `ids[place]`."""
        node = self._tries.get(ids[place])
        if node is None:
            node = self._tries[ids[place]] = _Node(ids[place])
        for token in ids[place + 1 : place + 2 + self.branch_length]:
            child = node.children.get(token)
            if child is None:
                child = node.children[token] = _Node(token)
            node = child
            yield node


class Stream:
    """The output of one sequence on its way into a forest, `branch_length` tokens late."""

    def __init__(self, forest: TrieForest) -> None:
        self.forest = forest
        self._buffer: list[int] = []

    def push(self, ids: Sequence[int]) -> None:
        """Append output tokens; a branch is stored once it is complete."""
        self._buffer += self.forest.before_end(ids)
        length = self.forest.branch_length + 1
        self.forest.count_outputs(self._buffer, len(self._buffer) - length)
        self._buffer = self._buffer[-length:]

    def flush(self) -> None:
        """Store the branches that are not complete."""
        self.forest.count_outputs(self._buffer, len(self._buffer) - 1)
        self._buffer = []


def _below(top: _Node) -> list[_Node]:
    """Nodes below `top`, depth first, in the order in which they were made."""
    found: list[_Node] = []
    waiting = list(reversed(top.children.values()))
    while waiting:
        node = waiting.pop()
        found.append(node)
        waiting.extend(reversed(node.children.values()))
    return found
