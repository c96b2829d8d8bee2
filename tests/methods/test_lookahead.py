"""Lookahead: a window among longer ones is filled up with riders that change nothing."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import torch

from harness.drafting.drafter import Outcome, TargetView
from methods.lookahead.drafter import Lookahead


def test_a_window_is_filled_up_with_riders_that_see_nobody_else() -> None:
    drafter = Lookahead(level=3, window=2, num_guesses=1)
    drafter.bind(cast(TargetView, SimpleNamespace(device=torch.device("cpu"), vocab_size=9)))
    drafter.reset(1)
    drafter.observe(Outcome(committed=[[]], pending=[5]))
    riders = drafter.propose([9]).riders
    assert riders is not None
    # A sequence that is one round ahead has two more riders.
    drafter.reset(2)
    drafter.observe(Outcome(committed=[[], []], pending=[5, 5]))
    drafter._states[1][0].levels.append([7, 7])
    both = drafter.propose([9, 9]).riders
    assert both is not None
    assert both.tokens.tolist() == [[5, 5, 0, 0], [5, 5, 7, 7]]
    assert both.offsets[0].tolist() == [1, 2, 0, 0]
    assert both.visible[0, 0].tolist() == [True, True, False, False, False]
    assert both.visible[0, 3].tolist() == [True, False, False, False, True]
    assert torch.equal(both.visible[0, :2, :3], riders.visible[0])
    assert both.visible[1, 3].tolist() == [True, True, False, False, True]
