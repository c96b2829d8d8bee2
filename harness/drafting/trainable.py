"""TrainableDrafter: the interface that `harness.train` trains through."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from harness.drafting.drafter import Drafter


@dataclass(frozen=True, kw_only=True)
class TrainingRow:
    """Documents packed into one row of L tokens, with what the target computes for them."""

    ids: Tensor
    """[L] int64."""
    answer: Tensor
    """[L] bool: tokens that the assistant wrote."""
    document: Tensor
    """[L] int64: number of the document that a token belongs to; tokens see no other document."""
    positions: Tensor
    """[L] int64: position within the document."""
    taps: list[Tensor]
    """Per tap of the drafter the target's states [L, H]."""
    final: Tensor
    """[L, H]: what the target's LM head reads."""
    best: Tensor
    """[L] int64: the target's most probable next token after each token of an answer, -1 elsewhere."""


@dataclass(frozen=True, kw_only=True)
class TrainingStep:
    """The place of a loss in its training, for weights that follow a schedule."""

    number: int
    """Optimiser steps taken so far."""
    num_steps: int
    """Optimiser steps of the whole training."""


@dataclass(frozen=True, kw_only=True)
class Loss:
    """The loss of a call; a drafter with several losses adds them up itself."""

    total: Tensor
    """A scalar with its gradient: the mean over the rows of the call."""
    numbers: Mapping[str, float] = field(default_factory=dict)
    """Anything worth a curve, under names of the drafter's choice; the trainer averages it and reads none."""


class TrainableDrafter(Drafter):
    """A drafter with parameters that `harness.train` can train.

    A training is resumed from the module that `begin_training` returned and from the state of torch's CPU
    generator. Whatever else a loss depends on must therefore be a buffer of that module, or follow from the
    arguments of `begin_training` and `loss`. A reference network that is not trained follows from the weights
    that the training started from, and can be kept outside the module.
    """

    rows_per_loss: ClassVar[int] = 1
    """Rows that one call of `loss` receives; more where a loss compares rows with each other. It must divide
    `training.rows_per_step`; during evaluation the last call may receive fewer."""
    exports_model: ClassVar[bool] = False
    """Whether `export` writes a whole model, to be measured as a target; the tokenizer is put beside it."""

    @abstractmethod
    def begin_training(self, counts: Tensor, rows: Sequence[TrainingRow], seed: int) -> torch.nn.Module:
        """Create the module to train, in float32 on the target's device.

        The parameters that require a gradient are trained.

        Args:
            counts: [V] int64, how often each token occurs in the answers (for a draft vocabulary).
            rows: a few rows (for the scale of the features).
            seed: of fresh weights.
        """

    @abstractmethod
    def loss(self, rows: Sequence[TrainingRow], step: TrainingStep) -> Loss:
        """The loss of some rows, for a gradient step or, without gradients, for an evaluation."""

    @abstractmethod
    def deploy(self) -> None:
        """Draft with the module in its present state from now on."""

    @abstractmethod
    def export(self, folder: Path, card: dict[str, Any]) -> None:
        """Write the module in its present state, and card.json, so that the drafter can load it."""
