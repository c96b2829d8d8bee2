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
from harness.target.model import Target
from methods.tts import Tts
from methods.tts.learner import Recipe, example_of
from methods.tts.schedules import BanditSettings
from methods.vanilla import Vanilla
from tests.support.targets import VOCAB, requests, tiny_model


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


def check_output(base: Any, schedule: Any) -> None:
    """The output of a drafter that is updated on line is vanilla's."""
    loop = DecodingLoop(Target(tiny_model("llama")), (), 512, timed=False)
    drafter = Tts(
        base=base,
        schedule=schedule,
        recipe=Recipe(learning_rate=1e-3),
        bandit=BanditSettings(window=2, min_rejected=0),
    )
    drafter.bind(loop.target)
    learned, plain = written_with_and_without(drafter, loop)
    assert learned == plain
    assert all(lane.num_updates for lane in drafter.lanes)


def check_learning(base: Any, learning_rate: float, num_updates: int) -> None:
    """Updates halve the loss of a round, drafting follows once they are published, and a new sequence
    forgets them."""
    drafter = Tts(base=base, schedule="always", recipe=Recipe(learning_rate=learning_rate))
    drafter.bind(Target(tiny_model("llama")))
    (lane,), network = drafter.lanes, base.network
    assert lane.learner is not None
    before = [one.detach().clone() for one in network.parameters()]
    draft = started(base)
    logits = 4 * torch.randn(1, 1 + draft.width, VOCAB, generator=torch.Generator().manual_seed(1))
    example = example_of(lane.drafter, Outcome(committed=[[23]], pending=[24], draft=draft, logits=logits))
    found = []
    for _ in range(num_updates):
        lane.learner.learn([example], "full")
        found.append(float(lane.learner.terms.target))
    assert found[-1] < 0.5 * found[0]
    lane.drafter.publish()
    assert not all(map(torch.equal, before, network.parameters()))
    again = lane.drafter.recall(draft, torch.zeros(1, dtype=torch.int64))
    assert torch.allclose(again()[0].log_softmax(-1), lane.learner.guesses([example])[0], atol=1e-5)
    drafter.reset(1)
    assert all(map(torch.equal, before, network.parameters()))
