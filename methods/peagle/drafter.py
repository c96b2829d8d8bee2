"""P-EAGLE as a method: the drafter, and the training of its head."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from torch import Tensor
from typing_extensions import override

from harness.config import configurable
from harness.drafting.trainable import Loss, TrainableDrafter, TrainingRow, TrainingStep
from methods.peagle.network import PEagleNetwork, save_network
from methods.peagle.online import OnlineParallel
from methods.peagle.training import PEagleRecipe, fresh_network, loss_of, scaled
from methods.shared.draft_vocabulary import DraftVocabulary
from methods.shared.eagle.training import feature_scale


@configurable
class PEagle(OnlineParallel, TrainableDrafter):
    """Drafts chains with an EAGLE-3 head that was trained to fill mask tokens."""

    recipe: PEagleRecipe = Field(default_factory=PEagleRecipe)
    """Its training, to the depths of `draft_length`."""

    @override
    def begin_training(self, counts: Tensor, rows: Sequence[TrainingRow], seed: int) -> torch.nn.Module:
        """Start from fresh weights if the head is `random`, else from the head's weights."""
        self._scale: Tensor | None = None
        if self.network.head.reads_raw_features:
            self._scale = feature_scale(torch.cat([torch.cat(row.taps, dim=-1) for row in rows]))
        if self.head == "random":
            self._student = fresh_network(self.network, counts, self._target, seed)
        else:
            self._student = scaled(self.network, self._scale)
        self._student.train().requires_grad_(True)
        self._vocabulary = DraftVocabulary(self._student.head, self._target)
        return self._student

    @override
    def loss(self, rows: Sequence[TrainingRow], step: TrainingStep) -> Loss:
        (row,) = rows
        features = torch.cat(row.taps, dim=-1).float()
        return loss_of(
            self._student,
            features if self._scale is None else features / self._scale,
            row,
            self._target,
            self._vocabulary,
            self.recipe,
            self.draft_length,
            self.mask,
        )

    @override
    def deploy(self) -> None:
        dtype: torch.dtype = self._target.dtype if self.dtype == "target" else getattr(torch, self.dtype)
        self.network = self._trained().place(self._target.device, dtype)
        self._target.prepare(self.network)

    @override
    def export(self, folder: Path, card: dict[str, Any]) -> None:
        """Write the head in float16."""
        training = {**card.get("training", {}), "recipe": dataclasses.asdict(self.recipe)}
        save_network(
            self._trained().place(torch.device("cpu"), torch.float16),
            folder,
            aux_layers=[tap.layer + (tap.point == "output") for tap in self._taps],
            mask_token_id=self.mask,
            card={**card, "training": training},
        )

    def _trained(self) -> PEagleNetwork:
        return scaled(self._student, None if self._scale is None else 1 / self._scale)
