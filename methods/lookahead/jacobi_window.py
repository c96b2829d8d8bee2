"""Jacobi window: the parallel guesses of Lookahead decoding, and the pool of n-grams that they leave behind.

Fu et al. 2024, "Break the Sequential Dependency of LLM Inference Using Lookahead Decoding" (arXiv
2402.02057), as the authors' greedy search does it. A window has N-1 levels of tokens; every forward gives
the newest level one step more, and reading the levels column by column gives n-grams, which are pooled by
their first token.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

_SEED = 10
"""The first level is drawn from the text so far; a fixed seed makes an output's drafts reproducible."""


class JacobiWindow:
    """The window and the pool of one sequence."""

    def __init__(self, prompt: Sequence[int], level: int, width: int, num_guesses: int) -> None:
        """level: N, length of an n-gram. width: W, columns. num_guesses: G, n-grams kept for a token."""
        self._num_levels, self._num_guesses = level - 1, num_guesses
        draw = random.Random(_SEED)
        self.levels: list[list[int]] = [[draw.choice(prompt) for _ in range(width + level - 3)]]
        self.pool: dict[int, list[tuple[int, ...]]] = {}

    def guesses(self, pending: int) -> list[tuple[int, ...]]:
        """What may follow the pending token, the oldest first; nothing before the window is full."""
        return self.pool.get(pending, []) if self._is_full else []

    def advance(self, pending: int, newest: Sequence[int]) -> None:
        """Take in the target's likeliest tokens after each token of the newest level.

        pending: the token that was pending in that forward.
        """
        if not self._is_full:
            added = list(newest) if len(self.levels) == 1 else list(newest[1:])
            self.levels = [*(tokens[1:] for tokens in self.levels), added]
            return
        first, *others = self.levels
        for column, key in enumerate((pending, *first)):
            self._store(key, (*(tokens[column] for tokens in others), newest[column]))
        self.levels = [self.levels[1][1:], *self.levels[2:], list(newest)]

    @property
    def _is_full(self) -> bool:
        return len(self.levels) == self._num_levels

    def _store(self, key: int, gram: tuple[int, ...]) -> None:
        """The gram becomes the newest of its token's; the oldest one leaves a full list."""
        known = self.pool.setdefault(key, [])
        if gram in known:
            known.remove(gram)
        known.append(gram)
        del known[: -self._num_guesses]
