"""The loop that trains a drafter on one target: gradient steps, held-out evaluations, checkpoints.

Shapes: L tokens of a packed row, V vocabulary.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from accelerate import Accelerator
from pydantic import Field, model_validator
from torch import Tensor

from harness.config import ConfigError, configurable
from harness.decoding.loop import DecodingLoop
from harness.drafting.trainable import TrainableDrafter, TrainingStep
from harness.training.dialogues import Sample, truncated
from harness.training.evaluation import Averages, Evaluation, HeldOut, chunks
from harness.training.features import Features
from harness.training.folder import HEAD, TrainingFolder
from harness.training.row_packing import Rows
from harness.training.weights import LowRankUpdates, averaged, with_weights_of

_NUM_FIRST_ROWS = 4
"""Rows that a drafter sees before the training begins."""


@configurable
class Training:
    """How a drafter is trained."""

    num_steps: int = Field(ge=1)
    """Optimiser steps."""
    num_tokens: int | None = Field(default=None, ge=1)
    """Stop after this many answer tokens; None: no such limit."""
    row_tokens: int = Field(default=1024, ge=8)
    """L, the length of the rows that dialogues are packed into."""
    rows_per_step: int = Field(default=2, ge=1)
    """Rows per optimiser step, over all processes."""
    learning_rate: float = Field(default=1e-3, gt=0)
    """The peak, reached after `warmup_steps`; from there a cosine leads down to `final_share` of it."""
    final_share: float = Field(default=0.1, ge=0, le=1)
    average: float = Field(default=0.0, ge=0, lt=1)
    """Decay of the average of the weights that is evaluated and exported; 0: the last weights are."""
    rank: int | None = Field(default=None, ge=1)
    """Change matrices by products of this rank alone, and no other weights; None: all weights change."""
    warmup_steps: int = Field(default=50, ge=0)
    weight_decay: float = Field(default=0.0, ge=0)
    beta1: float = Field(default=0.9, ge=0, lt=1)
    beta2: float = Field(default=0.95, ge=0, lt=1)
    clip_norm: float = Field(default=0.5, gt=0)
    precision: Literal["no", "bf16", "fp16"] = "no"
    """Mixed precision of accelerate; on CUDA any but `no` also lets the target multiply in TF32."""
    seed: int = 0
    held_out: int = Field(default=64, ge=1)
    """Dialogues that are kept for evaluation."""
    features: str | None = None
    """A folder that keeps the target's features for later epochs and other heads, at about 2 bytes times
    hidden size times tapped states per token; None computes them anew each time."""
    eval_every: int = Field(default=200, ge=1)
    """Steps between evaluations."""
    save_every: int = Field(default=200, ge=1)
    """Steps between checkpoints."""
    eval_prompts: int = Field(default=16, ge=1)
    """Prompts that the ordinary loop decodes to measure the held-out tau."""
    eval_tokens: int = Field(default=96, ge=2)
    """Length of their outputs."""
    keep_heads: bool = False
    """Keep the head of every evaluation as `head-STEP`, beside the best one."""
    patience: int | None = Field(default=None, ge=1)
    """Stop after this many evaluations in a row without improvement; None: never."""

    @model_validator(mode="after")
    def _one_product(self) -> Training:
        if self.rank and self.average:
            raise ValueError(
                f"rank={self.rank}: an average of products has a higher rank; type training.average=0"
            )
        return self


class Progress(NamedTuple):
    """Where a training stands."""

    step: int = 0
    num_tokens: int = 0
    """Answer tokens seen."""
    best_tau: float = 0.0
    num_worse: int = 0
    """Evaluations since the last improvement."""
    best_loss: float = math.inf
    """Held-out loss of the evaluation with the best tau."""

    def after(self, found: Evaluation) -> Progress:
        """The progress after an evaluation: a higher tau is better, and at equal tau a lower loss."""
        if (found.tau, -found.loss) > (self.best_tau, -self.best_loss):
            return self._replace(best_tau=found.tau, best_loss=found.loss, num_worse=0)
        return self._replace(num_worse=self.num_worse + 1)


class Trainer:
    """Trains one drafter on one target. All that a later process needs to resume lies in the folder."""

    def __init__(
        self,
        engine: DecodingLoop,
        drafter: TrainableDrafter,
        training: Training,
        samples: Sequence[Sample],
        folder: Path,
        identity: dict[str, Any],
        features: Features,
    ) -> None:
        """identity: settings that must match to resume from a checkpoint; JSON types.

        Raises:
            ConfigError: there are too few dialogues, the drafter cannot divide the rows of a step, or the
            folder belongs to another training.
        """
        torch.manual_seed(training.seed)
        self.engine, self.drafter, self.training, self.features = engine, drafter, training, features
        on_cpu = engine.target.device.type == "cpu"
        self._accelerator = accelerator = Accelerator(mixed_precision=training.precision, cpu=on_cpu)
        if training.precision != "no" and not on_cpu:
            # The target's features stay float32, but their products need no more digits than the head's.
            torch.set_float32_matmul_precision("high")
        _refuse_indivisible(drafter, training, accelerator.num_processes)
        fitting = _fitting(samples, training)
        features.prepare(fitting, training.row_tokens, accelerator.process_index, accelerator.num_processes)
        accelerator.wait_for_everyone()
        random.Random(f"{training.seed}:held out").shuffle(fitting)
        self.held_out = HeldOut(
            samples=fitting[: training.held_out],
            row_tokens=training.row_tokens,
            num_prompts=training.eval_prompts,
            num_tokens=training.eval_tokens,
        )
        # Other answers to their prompts, such as a second sample, would tell what is measured on them.
        prompts = {sample.prompt for sample in self.held_out.samples} - {""}
        self.samples = [one for one in fitting[training.held_out :] if one.prompt not in prompts]
        self._rows = Rows(self.samples, training.row_tokens, training.seed)
        first = [features.row(self._rows.row(number)) for number in range(_NUM_FIRST_ROWS)]
        counts = _answer_counts(self.samples, engine.target.vocab_size)
        self.student = drafter.begin_training(counts, first, training.seed)
        self._updates = LowRankUpdates(self.student, training.rank, training.seed) if training.rank else None
        self._trained = [parameter for parameter in self.student.parameters() if parameter.requires_grad]
        if self._updates is not None:
            self._trained = self._updates.factors
        self._optimiser: Any = accelerator.prepare(_optimiser(self._trained, training))
        self._average = averaged(self.student, training.average) if training.average else None
        self.progress = Progress()
        self.folder = TrainingFolder(folder, identity)
        self._resume()

    def run(self, note: Callable[[str], None], log: Callable[[dict[str, float], int], None]) -> Progress:
        """Train to the end, or up to a limit of `Training`.

        note: takes a line for people. log: takes a point of the curves and its step.
        """
        training, begin = self.training, time.monotonic()
        first = self.progress.step
        while not self._is_over():
            numbers = self._step()
            step = self.progress.step
            self._write_curves(numbers, log)
            if step % training.eval_every == 0 or self._is_over():
                self._evaluate(note, log)
                rate = (time.monotonic() - begin) / max(step - first, 1)
                note(
                    f"step {step} of {training.num_steps}, {rate:.2f} s per step, loss {numbers['loss']:.3f}"
                )
            if step % training.save_every == 0 or self._is_over():
                self._save()
        return self.progress

    def evaluate(self) -> Evaluation:
        """Loss and tau on the held-out dialogues as things stand."""
        with with_weights_of(self._average, self.student):
            return self.held_out.evaluate(
                self.drafter, self.engine, self.features, self._accelerator, self._place
            )

    @property
    def _place(self) -> TrainingStep:
        return TrainingStep(number=self.progress.step, num_steps=self.training.num_steps)

    def _step(self) -> dict[str, float]:
        """Take one optimiser step; its mean numbers."""
        training, accelerator = self.training, self._accelerator
        rate = _learning_rate(training, self.progress)
        for group in self._optimiser.param_groups:
            group["lr"] = rate
        first = self.progress.step * training.rows_per_step
        numbers = range(first, first + training.rows_per_step)
        calls = list(chunks(numbers, self.drafter.rows_per_loss))
        averages, num_tokens = Averages(), 0
        self.student.zero_grad()
        for call in calls[accelerator.process_index :: accelerator.num_processes]:
            rows = [self.features.row(self._rows.row(number)) for number in call]
            with accelerator.autocast():
                loss = self.drafter.loss(rows, self._place)
            accelerator.backward(loss.total / len(calls))
            averages.add(loss, len(rows))
            num_tokens += sum(int(row.answer.sum()) for row in rows)
        if self._updates is not None:
            self._updates.take_gradients()
        if accelerator.num_processes > 1:
            for parameter in self._trained:
                if parameter.grad is not None:
                    parameter.grad = accelerator.reduce(parameter.grad, "sum")
            num_tokens = int(accelerator.reduce(torch.tensor(num_tokens, device=accelerator.device), "sum"))
        norm = accelerator.clip_grad_norm_(self._trained, training.clip_norm)
        self._optimiser.step()
        if self._updates is not None:
            self._updates.apply()
        if self._average is not None:
            self._average.update_parameters(self.student)
        self.progress = self.progress._replace(
            step=self.progress.step + 1, num_tokens=self.progress.num_tokens + num_tokens
        )
        return {**averages.means(), "grad_norm": float(norm), "learning_rate": rate}

    def _is_over(self) -> bool:
        training, progress = self.training, self.progress
        return (
            progress.step >= training.num_steps
            or (training.num_tokens is not None and progress.num_tokens >= training.num_tokens)
            or (training.patience is not None and progress.num_worse >= training.patience)
        )

    def _evaluate(self, note: Callable[[str], None], log: Callable[[dict[str, float], int], None]) -> None:
        """Evaluate, and export the head if it is the best so far."""
        found = self.evaluate()
        self.progress = self.progress.after(found)
        self._write_curves(found.numbers, log)
        note(f"held out: tau {found.tau:.3f}, loss {found.loss:.3f}")
        names = [HEAD] if self.progress.num_worse == 0 else []
        names += [f"{HEAD}-{self.progress.step}"] if self.training.keep_heads else []
        if self._accelerator.is_main_process and names:
            own = {name.removeprefix("held_out/"): value for name, value in found.numbers.items()}
            progress = {"step": self.progress.step, "num_answer_tokens": self.progress.num_tokens}
            with with_weights_of(self._average, self.student):
                for name in names:
                    self.drafter.export(self.folder.path / name, {"training": {**progress, **own}})

    def _write_curves(self, numbers: dict[str, float], log: Callable[[dict[str, float], int], None]) -> None:
        if self._accelerator.is_main_process:
            step = self.progress.step
            self.folder.add_to_curves(step, {"num_tokens": self.progress.num_tokens, **numbers})
            log(numbers, step)

    def _save(self) -> None:
        if self._accelerator.is_main_process:
            self.folder.save(
                {
                    "student": self.student.state_dict(),
                    "optimiser": self._optimiser.state_dict(),
                    **({} if self._average is None else {"average": self._average.state_dict()}),
                    **({} if self._updates is None else {"updates": self._updates.state()}),
                    "progress": tuple(self.progress),
                    "random": torch.get_rng_state(),
                }
            )

    def _resume(self) -> None:
        state = self.folder.load(self.engine.target.device)
        if state is None:
            return
        self.student.load_state_dict(state["student"])
        self._optimiser.load_state_dict(state["optimiser"])
        if self._average is not None:
            self._average.load_state_dict(state["average"])
        if self._updates is not None:
            self._updates.load(state["updates"])
        self.progress = Progress(*state["progress"])
        torch.set_rng_state(state["random"].cpu())
        self.folder.cut_curves(self.progress.step)


def _refuse_indivisible(drafter: TrainableDrafter, training: Training, num_processes: int) -> None:
    if training.rows_per_step % drafter.rows_per_loss:
        raise ConfigError(
            f"training.rows_per_step={training.rows_per_step}: give a multiple of {drafter.rows_per_loss},"
            " the rows that one loss of this method compares"
        )
    if num_processes * drafter.rows_per_loss > training.rows_per_step:
        raise ConfigError(
            f"training.rows_per_step={training.rows_per_step}: {num_processes} processes need at least"
            f" {num_processes * drafter.rows_per_loss}, {drafter.rows_per_loss} each"
        )


def _fitting(samples: Sequence[Sample], training: Training) -> list[Sample]:
    """The dialogues cut to the length of a row, without those whose answer begins later.

    Raises:
        ConfigError: none would be left to train on.
    """
    fitting = [truncated(sample, training.row_tokens) for sample in samples]
    fitting = [sample for sample in fitting if any(sample.answer)]
    if len(fitting) <= training.held_out:
        raise ConfigError(
            f"training.held_out={training.held_out}: there are {len(fitting)} dialogues in all"
            f" (whose answer begins within the {training.row_tokens} training.row_tokens)"
        )
    return fitting


def _answer_counts(samples: Sequence[Sample], vocab_size: int) -> Tensor:
    """[V] int64: how often each token occurs in the answers."""
    counts = torch.zeros(vocab_size, dtype=torch.int64)
    for sample in samples:
        ids = [token for token, is_answer in zip(sample.ids, sample.answer, strict=True) if is_answer]
        counts += torch.bincount(torch.tensor(ids, dtype=torch.int64), minlength=vocab_size)
    return counts


def _optimiser(parameters: list[torch.nn.Parameter], training: Training) -> torch.optim.AdamW:
    betas = (training.beta1, training.beta2)
    # One pass over each parameter; the steps of a small head wait for memory.
    return torch.optim.AdamW(
        parameters, lr=training.learning_rate, betas=betas, weight_decay=training.weight_decay, fused=True
    )


def _learning_rate(training: Training, progress: Progress) -> float:
    """The rate of the next step: a linear warm-up, then a cosine down to `final_share`.

    The cosine ends with the training, at whichever of its two limits comes first.
    """
    step = progress.step
    share = min(1.0, (step + 1) / max(training.warmup_steps, 1))
    if step >= training.warmup_steps:
        done = (step - training.warmup_steps) / max(training.num_steps - training.warmup_steps, 1)
        if training.num_tokens is not None:
            done = max(done, progress.num_tokens / training.num_tokens)
        least = training.final_share
        share = least + (1 - least) * (1 + math.cos(math.pi * min(done, 1.0))) / 2
    return share * training.learning_rate
