"""ClockedCosts: the fastest of a few forwards, and the target's costs as they were measured before."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from harness.profiling.clocked_costs import ClockedCosts
from harness.profiling.step_timing import StepTimings

TIMINGS = StepTimings(["dynamic"] * 3, [2e9, 3e9, 2.5e9], {"dynamic": [2e9, 3e9, 2.5e9]})


def test_the_fastest_of_a_few_forwards_counts_and_gradients_are_off(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    slow = itertools.cycle([0.9, 0.0, 0.4])
    monkeypatch.setattr("harness.profiling.clocked_costs.time.perf_counter", lambda: clock[0])

    def call(num_tokens: int) -> None:
        assert not torch.is_grad_enabled()
        clock[0] += num_tokens + next(slow)

    found = ClockedCosts(target=TIMINGS, device=torch.device("cpu")).seconds(call, 4)
    assert found == pytest.approx([1.0, 2.0, 3.0, 4.0])


def test_all_processes_weigh_what_the_first_one_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    def first(value: Any) -> Any:
        return [7.0] * len(value)

    monkeypatch.setattr("harness.profiling.clocked_costs.agreed", first)
    costs = ClockedCosts(target=TIMINGS, device=torch.device("cpu"))
    assert costs.seconds(lambda count: None, 2) == [7.0, 7.0]


def test_a_draft_costs_the_width_that_it_is_padded_to() -> None:
    costs = ClockedCosts(target=TIMINGS, device=torch.device("cpu"))
    assert costs.curve(1, 100) == pytest.approx([2.0, 2.5, 2.5])
