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
    """Grows by one token in amortised constant time.

    Of several places the first is told: the end of a state then never changes, while the latest would have to
    be carried up all suffix links with every token.
    """

    def __init__(self, tokens: Iterable[int] = (), max_match: int | None = None) -> None:
        """max_match: longest suffix that `repeated` looks at, in tokens (None: any)."""
        self.tokens: list[int] = []
        self._max_match = max_match
        self._place = (ROOT, 0)
        """Where the longest suffix of at most `max_match` tokens stood before; idle without that limit."""
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
        if self._max_match is not None:
            # Before the token enters, so that no suffix is found at its own place.
            # If the token then splits the state found, no repair is due: its clone has the same end
            # and, until the next token, the same successors.
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
        """The longest suffix (of at most `max_match` tokens) of all tokens that occurred before.

        Without a limit that is the link of the whole sequence's state: its longest suffix with another end.
        """
        if self._max_match is not None:
            return self.found(*self._place)
        state = self._link[self._last]
        return self.found(state, self._length[state])

    def step(self, state: int, length: int, token: int, max_length: int | None = None) -> tuple[int, int]:
        """Follow another sequence: from the state and length of its matched suffix to those one token later.

        Begin with (ROOT, 0). Valid only while nothing is appended here. `max_length` is cut to at every step:
        cutting a long match anew each time would climb all its suffix links.
        """
        while state != ROOT and token not in self._next[state]:
            state = self._link[state]
            length = self._length[state]
        following = self._next[state].get(token)
        if following is None:
            return ROOT, 0
        return (following, length + 1) if max_length is None else self._cut(following, length + 1, max_length)

    def found(self, state: int, length: int) -> Match:
        """The match that `step` arrived at."""
        return NO_MATCH if state <= ROOT else Match(length, self._end[state])

    def after(self, match: Match, count: int) -> Sequence[int]:
        """Up to `count` tokens that follow a match."""
        return self.tokens[match.end : match.end + count]

    def _cut(self, state: int, length: int, max_length: int) -> tuple[int, int]:
        """The suffix of at most `max_length` tokens of a matched one, with the state that holds it."""
        length = min(length, max_length)
        while state != ROOT and self._length[self._link[state]] >= length:
            state = self._link[state]
        return state, length

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
