"""Suffix tree: draft what followed the last tokens most often, as far as the counts make it likely.

SuffixDecoding, Oliaro et al. 2024 (arXiv 2411.04975), by the rules of ArcticInference (`9d46438`): one tree
of the request's own prompt and output and one of the outputs of earlier requests (with `memory=process` of
all earlier ones, as there). For every length m of a match, at most `factor` * m + `offset` tokens are
drafted, as long as the product of count(child) / count(node) is at least `min_prob`; of all lengths and
both trees the draft with the largest sum of these estimates is taken, the longer match and the request's
own tree first among equals.

Departures: counts come from a suffix automaton, which gives the same numbers; children with equal counts are
tried in the order in which they were first seen; and an output enters the common tree when its request ends.
The oldest half of more than `max_requests` outputs is dropped at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from pydantic import Field
from typing_extensions import override

from harness.config import configurable
from harness.drafting.draft import Draft
from harness.drafting.sequence_drafter import SequenceTreeDrafter
from methods.shared.memory import MemoryScope, RememberingDrafter
from methods.suffix_tree.counting_automaton import NOTHING, SEPARATOR, Continuation, CountingAutomaton


class Outputs:
    """The outputs of all requests that have ended, in one tree."""

    def __init__(self, max_depth: int, max_requests: int) -> None:
        self._max_depth, self._max_requests = max_depth, max_requests
        self._outputs: list[list[int]] = []
        self.tree = CountingAutomaton(max_depth)

    def add(self, output: Sequence[int]) -> None:
        """Append the output of a request; where there are too many, forget the older half."""
        self._outputs.append(list(output))
        fresh = self._outputs[-1:]
        if len(self._outputs) > self._max_requests:
            fresh = self._outputs = self._outputs[-max(1, self._max_requests // 2) :]
            self.tree = CountingAutomaton(self._max_depth)
        for one in fresh:
            for token in (*one, SEPARATOR):
                self.tree.extend(token)


@dataclass
class _State:
    outputs: Outputs
    own: CountingAutomaton
    prompt_length: int | None = None
    """None before the prompt is known."""


@configurable
class SuffixTree(RememberingDrafter, SequenceTreeDrafter):
    """Drafts a chain or a tree of frequent continuations."""

    draft_length: int = Field(default=32, ge=1)
    """Most tokens of a draft."""
    max_depth: int = Field(default=64, ge=2)
    """Depth of the trees, in tokens: match and draft together."""
    factor: float = Field(default=1.0, ge=0)
    """Tokens that are drafted for each token of the match."""
    offset: float = 0.0
    """Tokens that are drafted besides."""
    min_prob: float = Field(default=0.1, gt=0, le=1)
    """Least estimated probability of a drafted token."""
    min_score: float = Field(default=0.0, ge=0)
    """Drafts with a smaller sum of estimates are left to the next drafter of a router."""
    shape: Literal["chain", "tree"] = "chain"
    """Whether only the most frequent child of a node is drafted, or every likely one, the likeliest first."""
    max_requests: int = Field(default=100_000, ge=1)
    """Outputs in the common tree."""
    memory: MemoryScope = "question"
    """How long the common tree lasts; with `call` there is none."""

    @override
    def new_memory(self) -> Outputs:
        return Outputs(self.max_depth, self.max_requests)

    @override
    def start_with(self, memory: Outputs) -> _State:
        return _State(memory, CountingAutomaton(self.max_depth))

    @override
    def extend_one(self, state: _State, tokens: Sequence[int]) -> None:
        if state.prompt_length is None:
            state.prompt_length = len(tokens) - 1
        for token in tokens:
            state.own.extend(token)

    @override
    def end_one(self, state: _State) -> None:
        if state.prompt_length is not None and self._is_shared:
            state.outputs.add(state.own.tokens[state.prompt_length :])

    @override
    def propose(self, room: Sequence[int]) -> Draft:
        return replace(super().propose(room), is_chain=self.shape == "chain")

    @override
    def propose_tree(self, context: Sequence[int], state: _State, room: int) -> tuple[list[int], list[int]]:
        recent = context[-self.max_depth :]
        best = NOTHING
        for tree in (state.own, state.outputs.tree):
            for one in self._continuations(tree, recent, room):
                if one.score > best.score:
                    best = one
        return ([], []) if best.score < self.min_score else (best.tokens, best.parents)

    def _continuations(
        self, tree: CountingAutomaton, recent: Sequence[int], room: int
    ) -> Iterator[Continuation]:
        """What follows each suffix of the text in a tree, the longest suffix first.

        Of suffixes that occur at the same places, only the longest is asked: what follows is the same, and it
        may draft the most.
        """
        grow = tree.chain if self.shape == "chain" else tree.tree
        for state, length in tree.suffixes(recent):
            budget = min(self.draft_length, int(self.factor * length + self.offset))
            if self.shape == "chain":
                budget = min(budget, room)
            yield grow(state, length, budget, self.min_prob)
