"""Padding to cheaper shapes: chosen only where it pays, and invisible in what comes out."""

from __future__ import annotations

import pytest
import torch

from harness.cost import cheapest_widths, verify_ns
from harness.draft import Draft
from harness.target import Target
from tests.targets import tiny_model


def test_a_draft_is_padded_only_to_a_width_that_is_clearly_cheaper() -> None:
    assert cheapest_widths([1.0, 3.0, 2.0, 1.95, 4.0, 3.0]) == [0, 3, 2, 3, 5, 5]
    assert cheapest_widths([9.0, 1.0, 2.0]) == [0, 1, 2]


def test_every_width_is_timed() -> None:
    seconds = verify_ns(Target(tiny_model("llama")), num_rows=2, widest=4, num_context=8, num_repeats=1)
    assert len(seconds) == 5
    assert all(0 < one < 60e9 for one in seconds)


@pytest.mark.parametrize("chain", [True, False])
def test_a_padded_draft_is_the_same_draft(chain: bool) -> None:
    tokens, size = torch.tensor([[4, 5, 6], [7, 8, 9]]), torch.tensor([3, 1])
    parents = torch.tensor([[-1, 0, 0], [-1, -1, -1]])
    draft = Draft.chain(tokens, size) if chain else Draft(tokens=tokens, parents=parents, size=size)
    padded = draft.padded(5)
    padded.check(10)
    assert padded.width == 5
    assert torch.equal(padded.size, size)
    assert torch.equal(padded.ancestors[:, :3, :3], draft.ancestors)
    assert torch.equal(padded.ancestors[:, 3:], torch.eye(5, dtype=torch.bool).expand(2, 5, 5)[:, 3:])
    assert draft.padded(2) is draft
