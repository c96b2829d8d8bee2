"""TrainableDrafter: what a drafter must offer so that `harness.train` can train its head."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from harness.drafting.drafter import Drafter


@dataclass(frozen=True, kw_only=True)
class TrainingRow:
    """Documents packed into one row of L tokens, and what the target makes of them.

    ids [L] int64. answer [L] bool: tokens that the assistant wrote. document [L] int64: number of the
    document that a token belongs to; it sees no other. positions [L] int64: place within it. taps: per tap of
    the drafter the states [L, H]. final [L, H]: what the target's LM head reads. best [L] int64: the target's
    likeliest next token behind the tokens of the answers, -1 behind the others.
    """

    ids: Tensor
    answer: Tensor
    document: Tensor
    positions: Tensor
    taps: list[Tensor]
    final: Tensor
    best: Tensor


class TrainableDrafter(Drafter):
    """A drafter with a head that `harness.train` can train."""

    @abstractmethod
    def begin_training(self, counts: Tensor, rows: Sequence[TrainingRow], seed: int) -> torch.nn.Module:
        """A fresh head on the target's device, in float32: the module whose parameters are trained.

        counts [V]: how often each token stands in the answers (for a draft vocabulary). rows: a few, for the
        scale of the features.
        """

    @abstractmethod
    def loss(self, row: TrainingRow) -> tuple[Tensor, dict[str, float]]:
        """The loss of a row with its gradient, and numbers for curves (accuracy by position and the like)."""

    @abstractmethod
    def deploy(self) -> None:
        """From now on draft with the head as it has been trained so far."""

    @abstractmethod
    def export(self, folder: Path, card: dict[str, Any]) -> None:
        """Write the head as it has been trained so far, in its official format, with its card."""
