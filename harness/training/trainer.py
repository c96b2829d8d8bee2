"""Training of draft heads: rows of dialogues, the target's features on the line, checkpoints, held-out tau.

Shapes: L tokens of a packed row, V vocabulary.
"""

from __future__ import annotations

import json
import math
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from accelerate import Accelerator
from pydantic import Field

from harness.config import ConfigError, configurable
from harness.decoding.acceptance import Coupled
from harness.decoding.batch import Generation, Request
from harness.decoding.loop import LocalEngine
from harness.decoding.sampling import DecodingParams
from harness.drafting.trainable import TrainableDrafter
from harness.system.naming import class_names, digest
from harness.training.dialogues import Sample, truncated
from harness.training.features import Features
from harness.training.row_packing import Rows, pack

CHECKPOINT, CURVES, HEAD = "checkpoint.pt", "curves.jsonl", "head"
_NUM_SCALE_ROWS = 4
"""Rows that a drafter sees before it begins, for the scale of the features."""


@configurable
class Training:
    """How a head is trained.

    num_steps: optimiser steps; num_tokens: stop after so many answer tokens seen (None: no such limit).
    row_tokens: L; rows_per_step: of one optimiser step, over all processes. learning_rate: the peak, after
    `warmup_steps` and before a cosine down to a tenth. precision: of accelerate; on CUDA any but `no` has the
    target multiply in TF32, too. held_out: dialogues kept for evaluation. features: a folder in which the
    target's features are kept, so that epochs and other heads find them there (about 2 bytes times hidden
    size times tapped states a token); None computes them anew each time. eval_every, save_every: steps.
    eval_prompts, eval_tokens: of the held-out tau, which the ordinary loop measures. patience: evaluations
    without a better tau before it stops (None: never).
    """

    num_steps: int = Field(ge=1)
    num_tokens: int | None = Field(default=None, ge=1)
    row_tokens: int = Field(default=1024, ge=8)
    rows_per_step: int = Field(default=2, ge=1)
    learning_rate: float = Field(default=1e-3, gt=0)
    warmup_steps: int = Field(default=50, ge=0)
    weight_decay: float = Field(default=0.0, ge=0)
    beta1: float = Field(default=0.9, ge=0, lt=1)
    beta2: float = Field(default=0.95, ge=0, lt=1)
    clip_norm: float = Field(default=0.5, gt=0)
    precision: Literal["no", "bf16", "fp16"] = "no"
    seed: int = 0
    held_out: int = Field(default=64, ge=1)
    features: str | None = None
    eval_every: int = Field(default=200, ge=1)
    save_every: int = Field(default=200, ge=1)
    eval_prompts: int = Field(default=16, ge=1)
    eval_tokens: int = Field(default=96, ge=2)
    patience: int | None = Field(default=None, ge=1)


class Progress(NamedTuple):
    """Where a training stands: steps, answer tokens seen, the best held-out tau, evaluations since."""

    step: int = 0
    num_tokens: int = 0
    best_tau: float = 0.0
    num_worse: int = 0


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Of the held-out dialogues: mean loss, accuracy by position, tau and its ledger."""

    numbers: dict[str, float]
    tau: float


class Trainer:
    """Trains one drafter's head on one target; the folder holds all that a later process needs to go on."""

    def __init__(
        self,
        engine: LocalEngine,
        drafter: TrainableDrafter,
        training: Training,
        samples: Sequence[Sample],
        folder: Path,
        identity: dict[str, Any],
        features: Features,
    ) -> None:
        """identity: what must be the same for a checkpoint to be gone on from.

        Raises:
            ConfigError: too few dialogues, or the folder belongs to another training.
        """
        fitting = [truncated(sample, training.row_tokens) for sample in samples]
        fitting = [sample for sample in fitting if any(sample.answer)]
        if len(fitting) <= training.held_out:
            raise ConfigError(
                f"training.held_out={training.held_out}: there are {len(fitting)} dialogues in all"
                f" (whose answer begins within the {training.row_tokens} training.row_tokens)"
            )
        torch.manual_seed(training.seed)
        self.engine, self.drafter, self.training, self.folder = engine, drafter, training, folder
        on_cpu = engine.target.device.type == "cpu"
        self._accelerator = Accelerator(mixed_precision=training.precision, cpu=on_cpu)
        if training.precision != "no" and not on_cpu:
            # The target's features stay float32, but their products need no more digits than the head's.
            torch.set_float32_matmul_precision("high")
        self.features = features
        accelerator = self._accelerator
        features.prepare(fitting, training.row_tokens, accelerator.process_index, accelerator.num_processes)
        accelerator.wait_for_everyone()
        order = list(fitting)
        random.Random(f"{training.seed}:held out").shuffle(order)
        self.held_out, self.samples = order[: training.held_out], order[training.held_out :]
        self._rows = Rows(self.samples, training.row_tokens, training.seed)
        self._identity = digest(identity)
        counts = torch.zeros(engine.target.vocab_size, dtype=torch.int64)
        for sample in self.samples:
            ids = [token for token, said in zip(sample.ids, sample.answer, strict=True) if said]
            counts += torch.bincount(torch.tensor(ids, dtype=torch.int64), minlength=len(counts))
        first = [self.features.row(self._rows.row(number)) for number in range(_NUM_SCALE_ROWS)]
        self.student = drafter.begin_training(counts, first, training.seed)
        trained = [parameter for parameter in self.student.parameters() if parameter.requires_grad]
        betas = (training.beta1, training.beta2)
        optimiser = torch.optim.AdamW(
            trained, lr=training.learning_rate, betas=betas, weight_decay=training.weight_decay
        )
        self._optimiser: Any = self._accelerator.prepare(optimiser)
        self._trained = trained
        self.progress = Progress()
        self._load()

    def run(self, note: Any, log: Any) -> Progress:
        """Train to the end, or to where a limit of `Training` stops it.

        note: takes a line for people. log: takes a dict of numbers and the step.
        """
        training, begin = self.training, time.monotonic()
        first = self.progress.step
        while not self._is_over():
            numbers = self._step()
            step = self.progress.step
            if self._accelerator.is_main_process:
                self._write_curve({"step": step, "num_tokens": self.progress.num_tokens, **numbers})
                log(numbers, step)
            if step % training.eval_every == 0 or self._is_over():
                self._evaluated(note, log)
                rate = (time.monotonic() - begin) / max(step - first, 1)
                note(f"step {step} of {training.num_steps}, {rate:.2f} s a step, loss {numbers['loss']:.3f}")
            if step % training.save_every == 0 or self._is_over():
                self._save()
        return self.progress

    def evaluate(self) -> Evaluation:
        """Loss and accuracy on held-out rows, and tau of the loop on held-out prompts, at temperature 0."""
        training = self.training
        sums: dict[str, list[float]] = {}
        for samples in pack(self.held_out, training.row_tokens):
            with torch.no_grad(), self._accelerator.autocast():
                loss, numbers = self.drafter.loss(self.features.row(samples))
            for name, value in {"loss": float(loss), **numbers}.items():
                sums.setdefault(name, []).append(value)
        emitted = [count for one in self._decode() for count in one.emitted]
        tau = sum(emitted) / max(len(emitted), 1)
        numbers = {f"held_out/{name}": sum(values) / len(values) for name, values in sums.items()}
        return Evaluation(numbers={**numbers, "held_out/tau": tau}, tau=tau)

    def _step(self) -> dict[str, float]:
        """One optimiser step; its mean numbers."""
        training, accelerator = self.training, self._accelerator
        self._set_learning_rate()
        first = self.progress.step * training.rows_per_step
        mine = range(
            first + accelerator.process_index, first + training.rows_per_step, accelerator.num_processes
        )
        sums: dict[str, float] = {}
        num_tokens = 0
        self._optimiser.zero_grad()
        for number in mine:
            samples = self._rows.row(number)
            row = self.features.row(samples)
            with accelerator.autocast():
                loss, numbers = self.drafter.loss(row)
            accelerator.backward(loss / training.rows_per_step)
            for name, value in {"loss": float(loss.detach()), **numbers}.items():
                sums[name] = sums.get(name, 0.0) + value / len(mine)
            num_tokens += int(row.answer.sum())
        if accelerator.num_processes > 1:
            for parameter in self._trained:
                if parameter.grad is not None:
                    parameter.grad = accelerator.reduce(parameter.grad, "sum")
            seen = accelerator.reduce(torch.tensor(num_tokens, device=accelerator.device), "sum")
            num_tokens = int(seen)
        norm = accelerator.clip_grad_norm_(self._trained, training.clip_norm)
        self._optimiser.step()
        self.progress = self.progress._replace(
            step=self.progress.step + 1, num_tokens=self.progress.num_tokens + num_tokens
        )
        return {**sums, "grad_norm": float(norm), "learning_rate": self._optimiser.param_groups[0]["lr"]}

    def _set_learning_rate(self) -> None:
        training, step = self.training, self.progress.step
        share = min(1.0, (step + 1) / max(training.warmup_steps, 1))
        if step >= training.warmup_steps:
            done = (step - training.warmup_steps) / max(training.num_steps - training.warmup_steps, 1)
            share = 0.1 + 0.9 * (1 + math.cos(math.pi * min(done, 1.0))) / 2
        for group in self._optimiser.param_groups:
            group["lr"] = share * training.learning_rate

    def _is_over(self) -> bool:
        training, progress = self.training, self.progress
        return (
            progress.step >= training.num_steps
            or (training.num_tokens is not None and progress.num_tokens >= training.num_tokens)
            or (training.patience is not None and progress.num_worse >= training.patience)
        )

    def _evaluated(self, note: Any, log: Any) -> None:
        """Evaluate, and keep the head where its tau is the best so far."""
        found = self.evaluate()
        better = found.tau > self.progress.best_tau
        self.progress = self.progress._replace(
            best_tau=max(found.tau, self.progress.best_tau),
            num_worse=0 if better else self.progress.num_worse + 1,
        )
        if not self._accelerator.is_main_process:
            return
        self._write_curve(
            {"step": self.progress.step, "num_tokens": self.progress.num_tokens, **found.numbers}
        )
        log(found.numbers, self.progress.step)
        loss, right = (found.numbers[f"held_out/{name}"] for name in ("loss", "accuracy_0"))
        note(f"held out: tau {found.tau:.3f}, accuracy {right:.1%}, loss {loss:.3f}")
        if better:
            self.drafter.export(
                self.folder / HEAD,
                {
                    "training": {
                        "step": self.progress.step,
                        "num_answer_tokens": self.progress.num_tokens,
                        **{name.removeprefix("held_out/"): value for name, value in found.numbers.items()},
                    }
                },
            )

    def _decode(self) -> list[Generation]:
        training = self.training
        self.drafter.deploy()
        prompts = [prompt_of(sample) for sample in self.held_out[: training.eval_prompts]]
        params = DecodingParams(name="held out", max_new_tokens=training.eval_tokens)
        requests = [Request(prompt=prompt, key=number) for number, prompt in enumerate(prompts)]
        return self.engine.generate(requests, self.drafter, params, Coupled())

    def _write_curve(self, line: dict[str, Any]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / CURVES).open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")

    def _save(self) -> None:
        """Everything that going on needs, in one file that is there whole or not at all."""
        if not self._accelerator.is_main_process:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        state = {
            "identity": self._identity,
            "student": self.student.state_dict(),
            "optimiser": self._optimiser.state_dict(),
            "progress": tuple(self.progress),
            "random": torch.get_rng_state(),
        }
        part = self.folder / f"{CHECKPOINT}.part"
        torch.save(state, part)
        part.replace(self.folder / CHECKPOINT)

    def _load(self) -> None:
        file = self.folder / CHECKPOINT
        if not file.is_file():
            return
        state = torch.load(file, map_location=self.engine.target.device, weights_only=True)
        if class_names(state["identity"]) != self._identity:
            raise ConfigError(
                f"out={self.folder}: holds a training with other settings; type another out=, or delete it"
            )
        self.student.load_state_dict(state["student"])
        self._optimiser.load_state_dict(state["optimiser"])
        self.progress = Progress(*state["progress"])
        torch.set_rng_state(state["random"].cpu())
        _cut(self.folder / CURVES, self.progress.step)


def prompt_of(sample: Sample) -> list[int]:
    """Ids up to the first answer."""
    return list(sample.ids[: sample.answer.index(True)])


def _cut(file: Path, step: int) -> None:
    """Drop the lines of a curve that were written after `step`: they will be written again."""
    if file.is_file():
        kept = [line for line in file.read_text().splitlines() if json.loads(line)["step"] <= step]
        file.write_text("".join(f"{line}\n" for line in kept))
