"""Evaluation on held-out dialogues: the mean loss, and tau measured by decoding."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from accelerate import Accelerator

from harness.config import ConfigError
from harness.decoding.acceptance import Coupled
from harness.decoding.batch import Request
from harness.decoding.loop import DecodingLoop
from harness.decoding.sampling import DecodingParams
from harness.drafting.trainable import Loss, TrainableDrafter, TrainingStep
from harness.training.dialogues import Sample
from harness.training.features import Features
from harness.training.row_packing import pack

_OWN_NAMES = ("step", "num_tokens", "loss", "tau", "grad_norm", "learning_rate")
"""Names that the trainer itself writes into the curves."""
T = TypeVar("T")


class Averages:
    """Means of losses and of the drafter's own numbers, over the rows that each was given for."""

    def __init__(self) -> None:
        self._sums: dict[str, tuple[float, int]] = {}

    def add(self, loss: Loss, num_rows: int) -> None:
        """Take in the loss of a call over `num_rows` rows.

        Raises:
            ConfigError: the drafter gave a number under a name that the trainer uses itself.
        """
        taken = [name for name in loss.numbers if name in _OWN_NAMES]
        if taken:
            raise ConfigError(
                f"loss: the drafter returns numbers named {', '.join(taken)}, as curves of the trainer are;"
                f" give them names other than {', '.join(_OWN_NAMES)}"
            )
        for name, value in {"loss": float(loss.total.detach()), **loss.numbers}.items():
            total, count = self._sums.get(name, (0.0, 0))
            self._sums[name] = total + value * num_rows, count + num_rows

    def means(self, prefix: str = "") -> dict[str, float]:
        """The means by name, each name behind the prefix."""
        return {f"{prefix}{name}": total / count for name, (total, count) in self._sums.items()}


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The result of one evaluation."""

    loss: float
    tau: float
    """Mean number of tokens that a round of the loop emits at temperature 0."""
    numbers: dict[str, float]
    """Loss, tau and the means of the drafter's own numbers, as `held_out/NAME`."""


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """Dialogues that are never trained on."""

    samples: Sequence[Sample]
    row_tokens: int
    num_prompts: int
    """Prompts that are decoded to measure tau."""
    num_tokens: int
    """Length of their outputs."""

    def evaluate(
        self,
        drafter: TrainableDrafter,
        engine: DecodingLoop,
        features: Features,
        accelerator: Accelerator,
        step: TrainingStep,
    ) -> Evaluation:
        """Compute the loss on all dialogues, then deploy the drafter and measure tau with the ordinary
        loop."""
        averages = Averages()
        for packed in chunks(list(pack(self.samples, self.row_tokens)), drafter.rows_per_loss):
            with torch.no_grad(), accelerator.autocast():
                loss = drafter.loss([features.row(samples) for samples in packed], step)
            averages.add(loss, len(packed))
        drafter.deploy()
        prompts = [prompt_of(sample) for sample in self.samples[: self.num_prompts]]
        params = DecodingParams(name="held out", max_new_tokens=self.num_tokens)
        requests = [Request(prompt=prompt, key=number) for number, prompt in enumerate(prompts)]
        emitted = [n for one in engine.generate(requests, drafter, params, Coupled()) for n in one.emitted]
        tau = sum(emitted) / max(len(emitted), 1)
        numbers = averages.means("held_out/")
        return Evaluation(loss=numbers["held_out/loss"], tau=tau, numbers={**numbers, "held_out/tau": tau})


def prompt_of(sample: Sample) -> list[int]:
    """The ids up to the first answer."""
    return list(sample.ids[: sample.answer.index(True)])


def chunks(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """The items in order, `size` at a time; the last chunk may be shorter."""
    return (items[begin : begin + size] for begin in range(0, len(items), size))
