"""Suffix automaton: every substring of a growing token sequence, in linear space (Blumer et al. 1985).

A state stands for all substrings that end at the same positions. The longest of them has `length` tokens; the
suffix link leads to the state of its longest suffix that also ends at other positions.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

ROOT = 0


class Match(NamedTuple):
    """A suffix of `length` tokens occurred before, first as `tokens[end - length : end]`."""

    length: int
    end: int


NO_MATCH = Match(0, 0)


class SuffixAutomaton:
    """An automaton that grows by one token in amortised constant time, and finds first occurrences.

    Finding latest ones would cost more: with every token, the new end would have to be written to all states
    along the suffix links.
    """

    def __init__(self, tokens: Iterable[int] = (), max_match: int | None = None) -> None:
        """max_match: longest suffix that `repeated` considers, in tokens (None: any)."""
        self.tokens: list[int] = []
        self._max_match = max_match
        self._place = (ROOT, 0)
        """State and length of the longest repeated suffix, up to `max_match`; unused without a limit."""
        self._next: list[dict[int, int]] = [{}]
        self._link = [-1]
        self._length = [0]
        self._end = [0]
        """Per state, the number of tokens up to the end of its first occurrence."""
        self._last = ROOT
        for token in tokens:
            self.extend(token)

    def extend(self, token: int) -> None:
        """Append a token."""
        if self._max_match is not None:
            # The step comes before the token is added, so that no suffix matches itself. If adding the token
            # splits the state that was found, nothing needs repair: the clone has the same end and, until the
            # next token, the same successors.
            self._place = self.step(*self._place, token, self._max_match)
        self.tokens.append(token)
        new = self._add({}, len(self.tokens), len(self.tokens))
        state = self._last
        while state != -1 and token not in self._next[state]:
            self._next[state][token] = new
            state = self._link[state]
        self._link[new] = ROOT if state == -1 else self._target_of(state, token)
        self._last = new

    def repeated(self) -> Match:
        """The longest suffix of all tokens (of at most `max_match` tokens) that occurred before.

        Without a limit, the suffix link of the whole sequence's state leads to it.
        """
        if self._max_match is not None:
            return self.found(*self._place)
        state = self._link[self._last]
        return self.found(state, self._length[state])

    def repeated_before(self, latest: int) -> Match:
        """The longest repeated suffix of all tokens whose first occurrence ends at `latest` or before.

        The suffix of one token where there is no such suffix.
        """
        state = self._link[self._last]
        while self._link[state] > ROOT and self._end[state] > latest:
            state = self._link[state]
        return self.found(state, self._length[state])

    def step(self, state: int, length: int, token: int, max_length: int | None = None) -> tuple[int, int]:
        """Match another sequence: from the state and length of its matched suffix to those one token later.

        Matching begins with (ROOT, 0), and is valid only as long as nothing is appended here. A match is
        shortened to `max_length` at every step, because shortening a long one later would climb all its
        suffix links.
        """
        while state != ROOT and token not in self._next[state]:
            state = self._link[state]
            length = self._length[state]
        following = self._next[state].get(token)
        if following is None:
            return ROOT, 0
        return (following, length + 1) if max_length is None else self._cut(following, length + 1, max_length)

    def found(self, state: int, length: int) -> Match:
        """The match for a state and length that `step` returned."""
        return NO_MATCH if state <= ROOT else Match(length, self._end[state])

    def after(self, match: Match, count: int) -> Sequence[int]:
        """Up to `count` tokens that follow a match."""
        return self.tokens[match.end : match.end + count]

    def _cut(self, state: int, length: int, max_length: int) -> tuple[int, int]:
        """State and length of a matched suffix that is shortened to `max_length` tokens."""
        length = min(length, max_length)
        while state != ROOT and self._length[self._link[state]] >= length:
            state = self._link[state]
        return state, length

    def _target_of(self, state: int, token: int) -> int:
        """The state that `token` leads to from `state`, cloned if it also stands for longer substrings."""
        old = self._next[state][token]
        length = self._length[state] + 1
        if self._length[old] == length:
            return old
        clone = self._add(dict(self._next[old]), length, self._end[old])
        self._split(old, clone)
        self._link[clone], self._link[old] = self._link[old], clone
        while state != -1 and self._next[state].get(token) == old:
            self._next[state][token] = clone
            state = self._link[state]
        return clone

    def _split(self, old: int, clone: int) -> None:
        """The shorter substrings of `old` have become those of `clone`; a hook for what else a state has."""

    def _add(self, following: dict[int, int], length: int, end: int) -> int:
        self._next.append(following)
        self._length.append(length)
        self._end.append(end)
        self._link.append(ROOT)
        return len(self._next) - 1
