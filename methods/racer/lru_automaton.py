"""LRU automaton: an Aho-Corasick automaton of recent n-grams in bounded memory (RACER, arXiv 2604.14885).

A trie of the n-grams of a growing text, every node with a count, a failure link and a place in one list by
last use. When the number of nodes is used up, a new node takes the one that was used longest ago. Failure
links are rebuilt only where the whole text is new; what is touched in between falls back to the root, as in
the authors' code: a match is then shorter than it could be, never wrong.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

TouchOrder = Literal["released", "leaf_to_root"]
"""`released` touches an inserted path on the way down only, so that an inner node may be taken before its
leaves; `leaf_to_root` touches it once more on the way back, as the paper means it."""


@dataclass(eq=False, slots=True)
class Node:
    """A string of the trie, represented by its last token."""

    token: int = -1
    depth: int = 0
    count: int = 0
    parent: Node | None = None
    failure: Node | None = None
    children: dict[int, Node] = field(default_factory=dict)

    def path(self) -> Iterator[Node]:
        """The node and its ancestors, up to the root."""
        node: Node | None = self
        while node is not None:
            yield node
            node = node.parent


class LruAutomaton:
    """Inserts n-grams of a text and finds where its end stood before."""

    def __init__(self, ngram: int, max_nodes: int, min_depth: int, touch_order: TouchOrder) -> None:
        """ngram: length of the n-grams. max_nodes: of the trie. min_depth: the shortest match that counts."""
        self._ngram, self._max_nodes, self._min_depth = ngram, max_nodes, min_depth
        self._touch_order = touch_order
        self._used: OrderedDict[Node, None] = OrderedDict()
        self._root = Node()
        self._touch(self._root)
        self._state = self._root

    @property
    def num_nodes(self) -> int:
        """Nodes of the trie, the root and those out of reach included."""
        return len(self._used)

    def state(self) -> list[int]:
        """The tokens of the matched suffix."""
        return [node.token for node in self._state.path()][-2::-1]

    def insert_prompt(self, ids: Sequence[int]) -> None:
        """Insert all n-grams of a new text, and rebuild the failure links of the whole trie."""
        for begin in range(len(ids) - self._ngram + 1):
            self._insert(ids[begin : begin + self._ngram])
        self._rebuild()

    def insert_last(self, text: Sequence[int], num_new: int) -> None:
        """Insert the n-grams that end at the last `num_new` tokens of the text, the last one first."""
        for end in range(len(text), len(text) - num_new, -1):
            if end < self._ngram:
                return
            self._insert(text[end - self._ngram : end])

    def find(self, token: int) -> list[Node]:
        """Read one token: the nodes that end with it and are a suffix of what was read, the longest first.

        They are at least `min_depth` deep. Where the token is found nowhere the state stays as it was.
        """
        found: list[Node] = []
        reached: Node | None = None
        node: Node | None = self._state
        while node is not None:
            child = node.children.get(token)
            if child is not None:
                if child.depth >= self._min_depth:
                    found.append(child)
                reached = reached or child
            node = None if node is self._root else node.failure
        if reached is not None:
            self._state = reached
        for border in found:
            self._touch_prefix(border)
        return found

    def feed(self, tokens: Sequence[int]) -> None:
        """Read accepted tokens."""
        for token in tokens:
            self._touch(self._state)
            if token not in self._state.children:
                node = self._state
                while node is not self._root and token not in node.children:
                    node = node.failure or self._root
                self._state = node
                self._touch_prefix(node)
            self._state = self._state.children.get(token, self._state)
        self._touch(self._state)

    def _insert(self, ids: Sequence[int]) -> None:
        node = self._root
        node.count += 1
        for token in ids:
            self._touch(node)
            child = node.children.get(token)
            if child is None:
                child = self._new(node, token)
            node = child
            node.count += 1
        self._touch(node)
        if self._touch_order == "leaf_to_root":
            for one in node.path():
                self._touch(one)

    def _new(self, parent: Node, token: int) -> Node:
        if len(self._used) < self._max_nodes:
            node = Node()
        else:
            # Whatever was used longest ago: links of others to it may now lead to another string.
            node, _ = self._used.popitem(last=False)
            if node.parent is not None and node.parent.children.get(node.token) is node:
                del node.parent.children[node.token]
            node.children = {}
            node.count = 0
        node.parent, node.token, node.depth, node.failure = parent, token, parent.depth + 1, self._root
        parent.children[token] = node
        self._touch(node)
        return node

    def _touch(self, node: Node) -> None:
        self._used[node] = None
        self._used.move_to_end(node)

    def _touch_prefix(self, node: Node) -> None:
        """Touch a node and its ancestors, whose failure links fall back to the root."""
        for one in node.path():
            one.failure = self._root
            self._touch(one)

    def _rebuild(self) -> None:
        """Failure links of the whole trie, breadth first (Aho and Corasick 1975)."""
        queue = deque([self._root])
        while queue:
            node = queue.popleft()
            for token, child in node.children.items():
                fallback = None if node is self._root else node.failure
                while fallback is not None and fallback is not self._root and token not in fallback.children:
                    fallback = fallback.failure
                child.failure = self._root if fallback is None else fallback.children.get(token, self._root)
                queue.append(child)
