"""Suffix automaton: every substring of a growing token sequence, in linear space (Blumer et al. 1985).

A state stands for the substrings that end at the same places. Its longest one has `length` tokens; the link
leads to the state of the longest suffix that also ends elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

ROOT = 0


class Match(NamedTuple):
    """A suffix of `length` tokens was found before; its first occurrence ends before token number `end`."""

    length: int
    end: int


NO_MATCH = Match(0, 0)


class SuffixAutomaton:
    """Grows by one token in amortised constant time."""

    def __init__(self, tokens: Iterable[int] = ()) -> None:
        self.tokens: list[int] = []
        self._next: list[dict[int, int]] = [{}]
        self._link = [-1]
        self._length = [0]
        self._end = [0]
        """Tokens up to the end of the first occurrence."""
        self._last = ROOT
        for token in tokens:
            self.extend(token)

    @property
    def num_states(self) -> int:
        """At most 2n for n tokens."""
        return len(self._next)

    def extend(self, token: int) -> None:
        """Append a token."""
        self.tokens.append(token)
        new = self._add({}, len(self.tokens), len(self.tokens))
        state = self._last
        while state != -1 and token not in self._next[state]:
            self._next[state][token] = new
            state = self._link[state]
        self._link[new] = ROOT if state == -1 else self._target_of(state, token)
        self._last = new

    def repeated(self, max_length: int | None = None) -> Match:
        """The longest suffix (of at most `max_length` tokens) of all tokens that occurred before.

        That is the link of the state of the whole sequence: the longest suffix with another end.
        """
        return self._match(self._link[self._last], self._length[self._link[self._last]], max_length)

    def step(self, state: int, length: int, token: int) -> tuple[int, int]:
        """Follow another sequence: from the state and length of its matched suffix to those one token later.

        Begin with (ROOT, 0). Valid only while nothing is appended here.
        """
        while state != ROOT and token not in self._next[state]:
            state = self._link[state]
            length = self._length[state]
        following = self._next[state].get(token)
        return (ROOT, 0) if following is None else (following, length + 1)

    def found(self, state: int, length: int, max_length: int | None = None) -> Match:
        """The match that `step` arrived at."""
        return self._match(state, length, max_length)

    def after(self, match: Match, count: int) -> Sequence[int]:
        """Up to `count` tokens that follow a match."""
        return self.tokens[match.end : match.end + count]

    def _match(self, state: int, length: int, max_length: int | None) -> Match:
        if state <= ROOT:
            return NO_MATCH
        if max_length is not None and length > max_length:
            length = max_length
            while self._length[self._link[state]] >= length:
                state = self._link[state]
        return Match(length, self._end[state])

    def _target_of(self, state: int, token: int) -> int:
        """Where `token` leads from `state`, split off if that state also holds longer substrings."""
        old = self._next[state][token]
        length = self._length[state] + 1
        if self._length[old] == length:
            return old
        clone = self._add(dict(self._next[old]), length, self._end[old])
        self._link[clone], self._link[old] = self._link[old], clone
        while state != -1 and self._next[state].get(token) == old:
            self._next[state][token] = clone
            state = self._link[state]
        return clone

    def _add(self, following: dict[int, int], length: int, end: int) -> int:
        self._next.append(following)
        self._length.append(length)
        self._end.append(end)
        self._link.append(ROOT)
        return len(self._next) - 1
