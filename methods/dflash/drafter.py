"""DFlash, DFlash2 and DSpark: one call of a deep head drafts a block of tokens behind the pending one.

DFlash (2026, arXiv 2602.06036): the head's layers read the target's features as keys and values, and all
slots are filled at once. DSpark (arXiv 2607.05147): a correction by the token before each slot, and a
confidence by which a draft ends early. DFlash2 (z-lab, 2026): convolutions between the slots, and a walk over
each slot's best tokens.
At `temperature` 0 the likeliest tokens are drafted; above, tokens are drawn, and the distribution that each
was drawn from is stated, because `accept=rejection` divides by it.

Shapes: k drafted slots.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from torch import Tensor
from typing_extensions import override

from harness.config import ConfigError, configurable
from harness.drafting.draft import Draft
from harness.drafting.drafter import TargetView
from harness.drafting.trainable import Loss, TrainableDrafter, TrainingRow, TrainingStep
from methods.shared.block.chains import chain_of
from methods.shared.block.checkpoint import refuse_unwritable, save_block
from methods.shared.block.draw import draw
from methods.shared.block.learning.training import BlockRecipe, fresh_network, loss_of, scaled
from methods.shared.block.online import OnlineBlock
from methods.shared.draft_vocabulary import DraftVocabulary
from methods.shared.eagle.training import feature_scale


@configurable
class DFlash(OnlineBlock, TrainableDrafter):
    """Drafts chains with a trained block drafter."""

    temperature: float = Field(default=0.0, ge=0, le=100)
    """At which tokens are drawn; 0 takes the likeliest."""
    confidence_threshold: float = Field(default=0.0, ge=0, lt=1)
    """A draft ends before the first slot whose confidence is lower; 0 never ends it early. For DSpark."""
    recipe: BlockRecipe = Field(default_factory=BlockRecipe)
    """Its training."""

    @override
    def bind(self, target: TargetView) -> None:
        """Load the head.

        Raises:
            ConfigError: there is no such head, or it does not fit the target or the settings.
        """
        super().bind(target)
        if self.confidence_threshold and not self.network.shape.confidence:
            raise ConfigError(
                f"confidence_threshold={self.confidence_threshold}: the head {self.head} has no confidence"
                " head; leave it at 0"
            )

    @property
    @override
    def num_drafted(self) -> int | None:
        return None if self.confidence_threshold else self.length

    @torch.no_grad()
    @override
    def propose(self, room: Sequence[int]) -> Draft:
        # The room is ignored: up to the last round, the block is the one that the official code would draft.
        drafting, noise = self._run(), None
        if self.temperature:
            noise = self._noise.draw(self._steps.cache.lengths, self.length).to(drafting.device)
        anchors = self.ids[:, 0]
        drawn = draw(self.network, self._target, drafting, anchors, self.temperature, noise)
        self.drawn = drawn
        likely = drawn.likelihood if drawn.confidence is None else drawn.confidence.sigmoid()
        return chain_of(drawn.tokens, likely, drawn.probs, self.confidence_threshold)

    @override
    def begin_training(self, counts: Tensor, rows: Sequence[TrainingRow], seed: int) -> torch.nn.Module:
        """Start from fresh weights if the head is `random`, else from the head's weights.

        Raises:
            ConfigError: the head has parts that are not trained.
        """
        shape = self.network.shape
        if shape.kind == "dflash2":
            raise ConfigError("kind=dflash2: only dflash and dspark heads can be trained")
        refuse_unwritable(self.network, f"start={self.head}")
        self._scale = feature_scale(torch.cat([torch.cat(row.taps, dim=-1) for row in rows]))
        if self.head == "random":
            self._student = fresh_network(self.network, counts, self._target, seed)
        else:
            self._student = scaled(self.network, self._scale)
        self._student.train().requires_grad_(True)
        for copied in (self._student.embed_tokens, self._student.lm_head):
            if copied is not None:
                copied.requires_grad_(False)
        self._vocabulary = DraftVocabulary(self._student, self._target)
        return self._student

    @override
    def loss(self, rows: Sequence[TrainingRow], step: TrainingStep) -> Loss:
        (row,) = rows
        features = torch.cat(row.taps, dim=-1).float() / self._scale
        return loss_of(self._student, features, row, self._target, self.recipe, self._vocabulary)

    @override
    def deploy(self) -> None:
        dtype: torch.dtype = self._target.dtype if self.dtype == "target" else getattr(torch, self.dtype)
        self.use(scaled(self._student, 1 / self._scale).place(self._target.device, dtype))

    @override
    def export(self, folder: Path, card: dict[str, Any]) -> None:
        """Write the head in float16."""
        network = scaled(self._student, 1 / self._scale).place(torch.device("cpu"), torch.float16)
        training = {**card.get("training", {}), "recipe": dataclasses.asdict(self.recipe)}
        save_block(network, folder, {**card, "training": training})
