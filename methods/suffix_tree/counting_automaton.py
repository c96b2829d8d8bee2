"""Counting automaton: how often every substring of up to a given length occurs in a growing text.

A suffix tree of limited depth with counts, as SuffixDecoding keeps it (Oliaro et al. 2024, arXiv 2411.04975),
holds a node per substring; the suffix automaton of the same text (Blumer et al. 1985) holds one state for all
substrings that end at the same places, so the counts of both are equal, and a text of n tokens takes at most
2n states whatever the depth is.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import NamedTuple

from typing_extensions import override

from methods.shared.suffix_automaton import ROOT, SuffixAutomaton

SEPARATOR = -1
"""Separates texts. It is no token id, so it is never drafted, but it counts as something that followed."""


class Continuation(NamedTuple):
    """What may follow a text, as a tree."""

    score: float
    """Sum of the nodes' estimated probabilities: the expected number of accepted tokens."""
    tokens: list[int]
    parents: list[int]
    """Index of each node's parent, -1 for the end of the text."""


NOTHING = Continuation(0.0, [], [])


class CountingAutomaton(SuffixAutomaton):
    """Appends a token in time that grows at most with `max_depth`, and estimates what follows a text."""

    def __init__(self, max_depth: int) -> None:
        """max_depth: longest substring that is counted, in tokens."""
        self._count = [0]
        self._max_depth = max_depth
        super().__init__(max_match=max_depth)

    @override
    def extend(self, token: int) -> None:
        super().extend(token)
        self._count[self._last] = 1
        # The suffixes of up to `max_depth` tokens that occurred before have one more occurrence. Their states
        # are those from the longest one's upwards, at most one per length.
        self._place = self._cut(*self._place, self._max_depth)
        state, _ = self._place
        while state > ROOT:
            self._count[state] += 1
            state = self._link[state]

    def count(self, ids: Sequence[int]) -> int:
        """How often these tokens, at most `max_depth`, occur."""
        state = ROOT
        for token in ids:
            following = self._next[state].get(token)
            if following is None:
                return 0
            state = following
        return self._count[state] if state else len(self.tokens)

    def suffixes(self, ids: Sequence[int]) -> list[tuple[int, int]]:
        """State and length of the longest suffix of `ids` that occurs, and of those with other counts."""
        state, length = ROOT, 0
        for token in ids[-self._max_depth :]:
            state, length = self.step(state, length, token, self._max_depth)
        found = []
        while state > ROOT:
            found.append((state, length))
            state = self._link[state]
            length = self._length[state]
        return found

    def chain(self, state: int, length: int, budget: int, least: float) -> Continuation:
        """The most frequent continuation, token by token, while its estimate is at least `least`."""
        tokens: list[int] = []
        estimate, score = 1.0, 0.0
        for _ in range(min(budget, self._max_depth - length)):
            best = max(self._next[state].items(), key=self._by_count, default=None)
            if best is None or best[0] == SEPARATOR:
                break
            estimate *= self._count[best[1]] / self._count[state]
            if estimate < least:
                break
            tokens.append(best[0])
            score += estimate
            state = best[1]
        return Continuation(score, tokens, list(range(-1, len(tokens) - 1)))

    def tree(self, state: int, length: int, budget: int, least: float) -> Continuation:
        """The `budget` likeliest nodes of all continuations with an estimate of at least `least`."""
        tokens: list[int] = []
        parents: list[int] = []
        score, number = 0.0, 0
        # Estimate (negative), a number that breaks ties by age, token, state, parent and depth of a node.
        waiting: list[tuple[float, int, int, int, int, int]] = [(-1.0, number, SEPARATOR, state, -2, length)]
        while waiting and len(tokens) < budget:
            negative, _, token, state, parent, depth = heapq.heappop(waiting)
            if token != SEPARATOR:
                parents.append(parent)
                tokens.append(token)
                score -= negative
            if depth == self._max_depth:
                continue
            for following, child in self._next[state].items():
                estimate = negative * self._count[child] / self._count[state]
                if -estimate >= least and following != SEPARATOR:
                    number += 1
                    heapq.heappush(waiting, (estimate, number, following, child, len(tokens) - 1, depth + 1))
        return Continuation(score, tokens, parents)

    def _by_count(self, item: tuple[int, int]) -> int:
        return self._count[item[1]]

    @override
    def _split(self, old: int, clone: int) -> None:
        self._count[clone] = self._count[old]

    @override
    def _add(self, following: dict[int, int], length: int, end: int) -> int:
        self._count.append(0)
        return super()._add(following, length, end)
