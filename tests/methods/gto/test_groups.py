"""Groups lie where drafts do, do not overlap, and can lie anywhere."""

from __future__ import annotations

import random

import torch

from methods.shared.gto.groups import drawn_groups

COUNTS = torch.tensor([0, 1, 1, 1, 1, 1, 0, 0, 1, 1, 0, 1, 1, 1, 1, 1, 1, 1]).bool()


def test_groups_hold_counting_places_only_and_each_at_most_once() -> None:
    for seed in range(30):
        groups = drawn_groups(COUNTS, 9, 3, random.Random(seed))
        assert groups.shape == (3, 3), "one in the first run, none in the second, two in the third"
        assert COUNTS[groups].all()
        assert len(groups.unique()) == groups.numel()
        assert (groups.diff(dim=1) == 1).all()


def test_every_place_can_be_in_a_group_and_the_source_alone_decides() -> None:
    drawn = [drawn_groups(COUNTS, 1, 3, random.Random(seed)) for seed in range(80)]
    seen = {place for groups in drawn for place in groups.flatten().tolist()}
    long_runs = {*range(1, 6), *range(11, 18)}
    assert seen == long_runs
    assert torch.equal(drawn[7], drawn_groups(COUNTS, 1, 3, random.Random(7)))


def test_runs_that_are_too_short_have_no_group() -> None:
    assert drawn_groups(COUNTS, 4, 8, random.Random(0)).shape == (0, 8)
