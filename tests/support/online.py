"""What tests of drafters that learn on line share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from harness.decoding.acceptance import Coupled
from harness.decoding.loop import DecodingLoop
from harness.decoding.sampling import DecodingParams
from harness.drafting.draft import Draft
from harness.drafting.drafter import Outcome
from methods.tts import Tts
from methods.vanilla import Vanilla
from tests.support.targets import requests


class Costs:
    """A forward costs about a second, an update a twentieth of it."""

    def curve(self, batch: float, context: float) -> list[float]:
        return [1 + 0.1 * number for number in range(64)]

    def seconds(self, call: Callable[[int], Any], most: int) -> list[float]:
        call(1)
        return [0.05] * most


@torch.no_grad()
def started(drafter: Any, num_tokens: int = 9) -> Draft:
    """The draft behind a random prompt, and a round before it."""
    torch.manual_seed(0)
    states = [torch.randn(1, num_tokens, 64) for _ in drafter.taps]
    drafter.reset(1)
    drafter.observe(Outcome(committed=[list(range(4, 4 + num_tokens))], pending=[20], taps=states))
    draft = drafter.propose([50])
    states = [torch.randn(1, 3, 64) for _ in drafter.taps]
    drafter.observe(Outcome(committed=[[20, 21, 22]], pending=[23], taps=states, draft=draft))
    return drafter.propose([50])  # type: ignore[no-any-return]


@torch.no_grad()
def slope(function: Callable[[], Tensor], parameter: torch.nn.Parameter, length: float) -> float:
    """The difference quotient of a function along a parameter's gradient, over a step of this length."""
    assert parameter.grad is not None
    step = length * parameter.grad / parameter.grad.norm().clamp(min=1e-6)
    parameter += step
    above = function()
    parameter -= 2 * step
    below = function()
    parameter += step
    return float(above - below) / (2 * length)


def written_with_and_without(drafter: Tts, loop: DecodingLoop) -> tuple[list[list[int]], list[list[int]]]:
    """Output ids of sampled requests, of a bound drafter and of vanilla."""
    if drafter.weighs_costs:
        drafter.use_costs(Costs(), 3)
    params = DecodingParams(name="sampled", temperature=1.0, max_new_tokens=20)
    plain = Vanilla()
    plain.bind(loop.target)
    learned = loop.generate(requests(), drafter, params, Coupled())
    static = loop.generate(requests(), plain, params, Coupled())
    return [one.output_ids for one in learned], [one.output_ids for one in static]
