"""Lookahead: a window among longer ones is filled up with riders that change nothing."""

from __future__ import annotations

from methods.lookahead.drafter import _row
from methods.lookahead.jacobi_window import JacobiWindow


def test_a_window_is_filled_up_with_riders_that_see_nobody_else() -> None:
    tokens, offsets, seen = _row(JacobiWindow([5], 3, 2, 1), 4)
    assert (tokens, offsets) == ([5, 5, 0, 0], [1, 2, 0, 0])
    assert seen[0] == [True, True, False, False, False]
    assert seen[3] == [True, False, False, False, True]
