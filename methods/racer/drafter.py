"""RACER: exact matches first, recycled logits for the rest, in one tree of a fixed number of nodes.

"RACER" (arXiv 2604.14885). What was said is searched in an automaton of the last n-grams of the text; what
the target nearly said is kept in a table of each token's k likeliest successors, as in Token Recycling,
written for every prompt position and every verified node. A round spends its budget of nodes on the
continuations of the matches, the most frequent first, and fills it up with a tree of recycled successors
that narrows with depth.

Two rules of the release differ from the paper and are fields: the narrowing of the tree (`breadth_rule`)
and the order in which nodes of the automaton are marked as used (`touch_order`). Departures from the
release: ties at the budget's cut are broken by the order of insertion instead of by memory address, no
padding node is verified. With `memory=process` automaton and table are kept for every later call, as in the
release.

Shapes: B sequences, n drafted nodes, m committed tokens, k successors, V vocabulary.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from pydantic import Field
from typing_extensions import override

from harness.config import configurable
from harness.drafting.drafter import HiddenTap, Outcome, TargetView
from harness.drafting.sequence_drafter import SequenceTreeDrafter
from methods.racer.lru_automaton import LruAutomaton, Node, TouchOrder
from methods.shared.likeliest import HEAD_INPUT, likeliest, likeliest_after
from methods.shared.memory import MemoryScope, RememberingDrafter
from methods.shared.vocabulary import refuse_small_vocabulary

BreadthRule = Literal["paper", "code"]
Table = dict[int, list[int]]


@dataclass
class _Memory:
    automaton: LruAutomaton | None
    table: Table = field(default_factory=dict)
    state: Node | None = None
    """The automaton's state where the last sequence ended; None before there was one."""


@dataclass
class _State:
    memory: _Memory
    place: Node | None
    """State of the automaton after what was read of this sequence."""
    text: list[int] = field(default_factory=list)
    pending: int | None = None


@configurable
class Racer(RememberingDrafter, SequenceTreeDrafter):
    """Drafts a tree of matches and recycled successors."""

    num_nodes: int = Field(default=64, ge=1)
    """Budget of a round, the pending token included."""
    ngram: int = Field(default=10, ge=0)
    """Length of the n-grams in the automaton; 0 leaves it out."""
    top_k: int = Field(default=8, ge=0)
    """k, the successors kept for each token; 0 leaves the table out."""
    max_nodes: int = Field(default=10_000, ge=2)
    """Bound on the nodes of the automaton."""
    min_depth: int = Field(default=2, ge=1)
    """Shortest match, in tokens, whose continuations are drafted."""
    breadth_rule: BreadthRule = "paper"
    """Where the tree keeps its breadth: below the pending token (paper) or one level deeper (code)."""
    touch_order: TouchOrder = "leaf_to_root"
    """When nodes of the automaton are marked as used; see `methods.racer.lru_automaton`."""

    table_size: int | None = Field(default=None, ge=1)
    """Tokens from this one on have no successors; None: the target's vocabulary ends the table. The release
    takes the tokenizer's size, which may be smaller."""
    memory: MemoryScope = "question"
    """How long automaton and table last."""

    @property
    @override
    def taps(self) -> tuple[HiddenTap, ...]:
        return (HEAD_INPUT,) if self.top_k else ()

    @override
    def bind(self, target: TargetView) -> None:
        """Meet the target.

        Raises:
            ConfigError: the vocabulary has fewer than k tokens.
        """
        super().bind(target)
        refuse_small_vocabulary(target, self.top_k)

    @override
    def new_memory(self) -> _Memory:
        automaton = LruAutomaton(self.ngram, self.max_nodes, self.min_depth, self.touch_order)
        return _Memory(automaton if self.ngram else None)

    @override
    def start_with(self, memory: _Memory) -> _State:
        root = memory.automaton.root if memory.automaton else None
        return _State(memory, memory.state or root)

    @override
    def end_one(self, state: _State) -> None:
        state.memory.state = state.place

    @override
    def extend_one(self, state: _State, tokens: Sequence[int]) -> None:
        """Insert the n-grams of what was committed, and read the accepted tokens; the last one is pending."""
        accepted, before, automaton = list(tokens[:-1]), state.pending, state.memory.automaton
        state.pending = tokens[-1]
        if before is None:
            state.text = accepted
            if automaton:
                automaton.insert_prompt(state.text)
            return
        state.text += [before, *accepted]
        if automaton and state.place:
            automaton.insert_last(state.text, 1 + len(accepted))
            # The token that was pending has been read by the look-up.
            state.place = automaton.feed(state.place, accepted)

    @override
    def propose_tree(self, context: Sequence[int], state: _State, room: int) -> tuple[list[int], list[int]]:
        """Matches of the text that ends with the pending token, then recycled successors."""
        budget = min(self.num_nodes, room + 1)
        borders: list[Node] = []
        if state.memory.automaton and state.place:
            borders, state.place = state.memory.automaton.find(state.place, context[-1])
        tree = _Tree()
        num_matched = tree.add_matches(borders, budget)
        if self.top_k:
            tree.add_successors(
                context[-1],
                state.memory.table,
                budget - num_matched,
                breadth=self.top_k,
                rule=self.breadth_rule,
                table_size=self.table_size,
            )
        return tree.tokens, tree.parents

    @override
    def observe(self, outcome: Outcome) -> None:
        """Write successors into the tables, then extend texts and automata."""
        rows = range(len(self._states)) if outcome.rows is None else outcome.rows
        learned = self._learned(outcome)
        # New sequences get their states here, and tables are written into these.
        super().observe(outcome)
        for row, successors in zip(rows, learned, strict=True):
            table = self._states[row].memory.table
            if self.table_size is None:
                table.update(successors)
            else:
                # A token without a row is a leaf.
                table.update({token: best for token, best in successors.items() if token < self.table_size})

    def _learned(self, outcome: Outcome) -> list[Table]:
        """Per sequence, the k likeliest successors of each token; of one token the last one counts."""
        if not self.top_k:
            return [{} for _ in outcome.pending]
        if outcome.draft is None:
            best = likeliest_after(outcome.taps[0], self._target, self.top_k).tolist()
            return [
                dict(zip(ids, rows, strict=False)) for ids, rows in zip(outcome.committed, best, strict=True)
            ]
        assert outcome.logits is not None
        drafted, sizes = outcome.draft.tokens.tolist(), outcome.draft.size.tolist()
        width = 1 + outcome.draft.width
        latest = [
            {token: row * width + node for node, token in enumerate([ids[0], *tokens[:size]])}
            for row, (ids, tokens, size) in enumerate(zip(outcome.committed, drafted, sizes, strict=True))
        ]
        places = [place for one in latest for place in one.values()]
        rows = iter(likeliest(outcome.logits, self.top_k, places).tolist())
        return [{token: next(rows) for token in one} for one in latest]


class _Tree:
    """A tree that grows by paths; equal paths are one."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.parents: list[int] = []
        self._places: dict[tuple[int, int], int] = {}

    def add(self, parent: int, token: int) -> int:
        """The node for `token` below node `parent`, made where it is missing."""
        place = self._places.setdefault((parent, token), len(self.tokens))
        if place == len(self.tokens):
            self.tokens.append(token)
            self.parents.append(parent)
        return place

    def add_matches(self, borders: Sequence[Node], budget: int) -> int:
        """The most frequent continuations of the matched nodes; how much of the budget they take.

        Among equally frequent ones the shallower string of the automaton comes first. A border stands for the
        pending token and takes one of the budget; what continues two matches takes one for each.
        """
        pool = [(node, border) for border in borders for node in _below(border)]
        chosen = heapq.nsmallest(budget, pool, key=lambda found: (-found[0].count, found[0].depth))
        places: dict[tuple[Node, Node], int] = {}
        for node, border in chosen:
            # A parent is at least as frequent and less deep, so it is in the tree already.
            above = -1 if node is border else self.add(places[_parent(node), border], node.token)
            places[node, border] = above
        return len(chosen)

    def add_successors(
        self,
        root: int,
        table: Table,
        budget: int,
        *,
        breadth: int,
        rule: BreadthRule,
        table_size: int | None,
    ) -> None:
        """Recycled successors, breadth first; a node's child of rank j gets a 2**j-th of its breadth."""
        unknown = [0] * breadth
        full_level = 0 if rule == "paper" else 1
        queue = deque([(root, -1, breadth, 0)])
        budget -= 1
        while queue and budget > 0:
            token, place, width, depth = queue.popleft()
            successors = table.get(token, unknown) if table_size is None or token < table_size else []
            shared = width if depth == full_level else width // 2
            following = successors[: min(width, budget)]
            for rank, child in enumerate(following):
                queue.append((child, self.add(place, child), max(1, shared >> rank), depth + 1))
            budget -= len(following)


def _below(border: Node) -> Iterator[Node]:
    """The border and the nodes below it, breadth first."""
    queue = deque([border])
    while queue:
        node = queue.popleft()
        yield node
        queue.extend(node.children.values())


def _parent(node: Node) -> Node:
    assert node.parent is not None
    return node.parent
