"""What tests of heads that draft a block at once share: texts, an overfit, and what it drafts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from harness.decoding.acceptance import Coupled
from harness.decoding.batch import Request
from harness.decoding.loop import DecodingLoop
from harness.decoding.sampling import DecodingParams
from harness.drafting.trainable import TrainingRow, TrainingStep
from harness.target.model import Target

STEP = TrainingStep(number=0, num_steps=1)


def texts(target: Target, count: int = 4, length: int = 30) -> list[list[int]]:
    """Texts that the target writes itself."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(4, 40, (count, 6), generator=generator)
    for _ in range(length - 6):
        ids = torch.cat([ids, target.trace(ids, ())[0][:, -1:].argmax(-1)], dim=1)
    return [one.tolist() for one in ids]


def overfit(drafter: Any, row: TrainingRow, counts: Tensor, num_steps: int) -> dict[str, float]:
    """Train on one row and deploy; the last step's numbers. The loss must fall to a third."""
    torch.manual_seed(0)
    module = drafter.begin_training(counts, [row], 0)
    optimiser = torch.optim.AdamW(module.parameters(), lr=3e-3)
    losses = []
    for _ in range(num_steps):
        optimiser.zero_grad()
        loss = drafter.loss([row], STEP)
        loss.total.backward()
        optimiser.step()
        losses.append(float(loss.total.detach()))
    assert losses[-1] < losses[0] / 3
    drafter.deploy()
    numbers: dict[str, float] = loss.numbers
    return numbers


def tau(drafter: Any, target: Target) -> float:
    """Tokens per round behind the beginnings of `texts`."""
    loop, params = DecodingLoop(target, (), 512, timed=False), DecodingParams(name="g", max_new_tokens=20)
    asked = [Request(prompt=text[:6], key=0) for text in texts(target)]
    emitted = [n for made in loop.generate(asked, drafter, params, Coupled()) for n in made.emitted]
    return sum(emitted) / len(emitted)


def losses_of_three_trainings(student: Callable[[], tuple[Any, Target, TrainingRow]]) -> list[list[float]]:
    """Four losses each of two trainings with the same seeds, and the last one of a third training.

    The third begins with the weights and the state of torch's generator that the second had before its last.
    """
    losses = list[list[float]]()
    for _ in range(2):
        drafter, target, row = student()
        torch.manual_seed(5)
        module = drafter.begin_training(torch.ones(target.vocab_size), [row], 0)
        losses.append([float(drafter.loss([row], STEP).total.detach()) for _ in range(3)])
        state, random = module.state_dict(), torch.get_rng_state()
        losses[-1].append(float(drafter.loss([row], STEP).total.detach()))
    drafter, target, row = student()
    drafter.begin_training(torch.ones(target.vocab_size), [row], 1).load_state_dict(state)
    torch.set_rng_state(random)
    return [*losses, [float(drafter.loss([row], STEP).total.detach())]]
