"""The average of a training's weights."""

from __future__ import annotations

import torch
from torch import nn

from harness.training.weights import averaged, with_weights_of


def module(value: float) -> nn.Linear:
    made = nn.Linear(1, 1, bias=False)
    nn.init.constant_(made.weight, value)
    return made


def test_the_average_of_constant_weights_is_these_weights() -> None:
    student = module(2.0)
    average = averaged(student, 0.9)
    for _ in range(5):
        average.update_parameters(student)
    assert float(average.module.weight.detach()) == 2.0


def test_late_weights_count_more_and_the_first_are_forgotten() -> None:
    student = module(100.0)
    average = averaged(student, 0.5)
    for step in range(20):
        student.weight.data.fill_(float(step))
        average.update_parameters(student)
    # The decay is 0.5 from step 8 on: the mean of a geometric distribution behind the last step.
    torch.testing.assert_close(average.module.weight.detach(), torch.tensor([[18.0]]), atol=0.01, rtol=0)


def test_within_the_block_the_average_stands_in_and_the_weights_come_back() -> None:
    student = module(0.0)
    average = averaged(student, 0.9)
    average.update_parameters(student)
    student.weight.data.fill_(8.0)
    average.update_parameters(student)
    kept = float(average.module.weight.detach())
    assert 0 < kept < 8
    with with_weights_of(average, student):
        assert float(student.weight.detach()) == kept
    assert float(student.weight.detach()) == 8.0
    with with_weights_of(None, student):
        assert float(student.weight.detach()) == 8.0
