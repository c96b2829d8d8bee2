"""The average of a training's weights."""

from __future__ import annotations

import torch

from harness.training.averaging import WeightAverage


def test_the_average_of_constant_weights_is_these_weights() -> None:
    weight = torch.nn.Parameter(torch.tensor([2.0, -1.0]))
    average = WeightAverage([weight], 0.9)
    for step in range(5):
        average.update(step)
    assert torch.equal(average.values[0], weight)


def test_late_weights_count_more_and_the_first_are_forgotten() -> None:
    weight = torch.nn.Parameter(torch.tensor([100.0]))
    average = WeightAverage([weight], 0.5)
    for step in range(20):
        weight.data.fill_(float(step))
        average.update(step)
    # The decay is 0.5 from step 8 on: the mean of a geometric distribution behind the last step.
    torch.testing.assert_close(average.values[0], torch.tensor([18.0]), atol=0.01, rtol=0)


def test_within_the_block_the_average_stands_in_and_the_weights_come_back() -> None:
    weight = torch.nn.Parameter(torch.tensor([0.0]))
    average = WeightAverage([weight], 0.5)
    weight.data.fill_(8.0)
    average.update(100)
    with average.in_place():
        assert float(weight.detach()) == 4.0
    assert float(weight.detach()) == 8.0


def test_without_a_decay_nothing_is_kept() -> None:
    weight = torch.nn.Parameter(torch.tensor([3.0]))
    average = WeightAverage([weight], 0.0)
    average.update(0)
    with average.in_place():
        assert float(weight.detach()) == 3.0
    assert average.values == []
