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
    """A string of the trie; it holds the last token, its ancestors the others."""

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
    """Inserts n-grams of texts and finds where the end of a text stood before.

    A text that is read has a state, the node of its longest known suffix, which its reader keeps. A node that
    is taken for another string while it is a state stands for that string from then on, as in the authors'
    code.
    """

    def __init__(self, ngram: int, max_nodes: int, min_depth: int, touch_order: TouchOrder) -> None:
        """ngram: length of the n-grams. max_nodes: of the trie. min_depth: the shortest match that counts."""
        self._ngram, self._max_nodes, self._min_depth = ngram, max_nodes, min_depth
        self._touch_order = touch_order
        self._used: OrderedDict[Node, None] = OrderedDict()
        self.root = Node()
        self._touch(self.root)

    @property
    def num_nodes(self) -> int:
        """Nodes of the trie, the root and those out of reach included."""
        return len(self._used)

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

    def find(self, state: Node, token: int) -> tuple[list[Node], Node]:
        """Read one token: the nodes that end with it and are a suffix of what was read, and the next state.

        The nodes are at least `min_depth` deep, the longest first. Where the token is found nowhere the state
        stays as it was.
        """
        found: list[Node] = []
        reached: Node | None = None
        node: Node | None = state
        while node is not None:
            child = node.children.get(token)
            if child is not None:
                if child.depth >= self._min_depth:
                    found.append(child)
                reached = reached or child
            node = None if node is self.root else node.failure
        for border in found:
            self._touch_prefix(border)
        return found, reached or state

    def feed(self, state: Node, tokens: Sequence[int]) -> Node:
        """Read accepted tokens; the next state."""
        for token in tokens:
            self._touch(state)
            if token not in state.children:
                while state is not self.root and token not in state.children:
                    state = state.failure or self.root
                self._touch_prefix(state)
            state = state.children.get(token, state)
        self._touch(state)
        return state

    def _insert(self, ids: Sequence[int]) -> None:
        node = self.root
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
        node.parent, node.token, node.depth, node.failure = parent, token, parent.depth + 1, self.root
        parent.children[token] = node
        self._touch(node)
        return node

    def _touch(self, node: Node) -> None:
        self._used[node] = None
        self._used.move_to_end(node)

    def _touch_prefix(self, node: Node) -> None:
        """Touch a node and its ancestors, whose failure links fall back to the root."""
        for one in node.path():
            one.failure = self.root
            self._touch(one)

    def _rebuild(self) -> None:
        """Failure links of the whole trie, breadth first (Aho and Corasick 1975)."""
        queue = deque([self.root])
        while queue:
            node = queue.popleft()
            for token, child in node.children.items():
                fallback = None if node is self.root else node.failure
                while fallback is not None and fallback is not self.root and token not in fallback.children:
                    fallback = fallback.failure
                child.failure = self.root if fallback is None else fallback.children.get(token, self.root)
                queue.append(child)
