"""EAGLE-1, EAGLE-2 and EAGLE-3: a small head that guesses the target's next features, grown into a tree.

EAGLE-1 (Li et al. 2024, arXiv 2401.15077): one decoder layer predicts the target's next final feature from
its
last one and the token drawn after it; the tree is static. EAGLE-2 (arXiv 2406.16858): the same weights, with
a
tree that follows the head's own confidence. EAGLE-3 (arXiv 2503.01840): features of three blocks, training on
the head's own guesses, and a draft vocabulary.
Where the code departs from the official one: scores are float32 and ties go to the earlier candidate;
sequences are batched; static trees hold the most probable children, not sampled ones.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, Literal

import torch
from omegaconf import OmegaConf
from pydantic import Field
from torch import Tensor
from typing_extensions import override

from harness.config import ConfigError, configurable
from harness.drafting.drafter import TargetView
from harness.drafting.trainable import Loss, TrainableDrafter, TrainingRow, TrainingStep
from methods.shared.draft_vocabulary import DraftVocabulary
from methods.shared.eagle.checkpoint import LoadedHead, TargetFacts, load_head, random_head, save_head
from methods.shared.eagle.heads.base import Architecture, AuxLayers, DraftHead
from methods.shared.eagle.heads.token_map import TokenMap
from methods.shared.eagle.online import OnlineHeadDrafter
from methods.shared.eagle.tap_check import reads_blocks, refuse_misread
from methods.shared.eagle.training import (
    EagleRecipe,
    counting_rows,
    feature_scale,
    folded,
    fresh_head,
    unfolded,
)
from methods.shared.gto.head_trees import HeadTrees
from methods.shared.gto.objective import GroupTrees
from methods.shared.head_files import CARDS, prompts_beside


@configurable
class Eagle(OnlineHeadDrafter, TrainableDrafter):
    """Drafts trees with a trained head."""

    architecture: Architecture
    head: str | None = None
    """A folder, a hub id, a head that ships (a folder of `methods/heads`), or `random`: weights from `seed`,
    which draft badly and serve to measure time alone."""
    revision: str | None = None
    dtype: Literal["target", "float32", "bfloat16", "float16"] = "target"
    """The head's dtype; `target` takes the target's."""
    aux_layers: tuple[int, ...] | None = Field(default=None, min_length=1)
    """The tapped blocks of EAGLE-3; None takes the checkpoint's, else the official 2, L//2 and L-3."""
    aux_convention: Literal["auto", "input", "output"] = "auto"
    """Whether `aux_layers` names blocks whose `input` or whose `output` is tapped. `auto`: `output` if the
    checkpoint's list begins with 1, as SpecForge writes it, else `input`."""
    norm_output: bool | None = None
    """The normed state is fed back; None takes what the checkpoint says."""
    norm_before_residual: bool | None = None
    """The residual carries the normed state; None takes what the checkpoint says."""
    draft_vocab_size: int | None = Field(default=None, ge=1)
    """Draft vocabulary of a random EAGLE-3 head; None is the target's whole vocabulary."""
    token_map: str | None = None
    """Draft the tokens of this file alone (FR-Spec), with an EAGLE-1/2 head: a file in the folder of the
    head, or a path; see `TokenMap`. None: all that the head can draft."""
    seed: int = Field(default=0, ge=0)
    recipe: EagleRecipe = Field(default_factory=EagleRecipe)
    """Its training."""
    objective: GroupTrees | None = None
    """Trains an existing head for the trees that it grows (GTO), beside the loss of the recipe."""

    @override
    def bind(self, target: TargetView) -> None:
        """Load the head.

        Raises:
            ConfigError: there is no such head, or it does not fit the target or the tree.
        """
        super().bind(target)
        self._loaded = self._load(target)
        self._drafted = TokenMap.read(self.token_map, self.head, target.vocab_size)
        network = self._drafted.narrow(self._loaded.head, target)
        aux = AuxLayers(
            chosen=self.aux_layers, written=self._loaded.aux_layers, convention=self.aux_convention
        )
        taps = network.taps(target.config.num_hidden_layers, aux)
        if len(taps) != network.shape.num_taps:
            raise ConfigError(
                f"aux_layers: {len(taps)} layers are named, but the fc of the head"
                f" {self.head} reads {network.shape.num_taps}"
            )
        width = network.shape.draft_vocab_size
        if self.tree.num_children > width:
            raise ConfigError(
                f"tree: {self.tree.num_children} children of a node, but the head's vocabulary has {width}"
            )
        self.use_head(network, taps)

    @override
    def card(self) -> dict[str, Any]:
        """The card of the head, its taps and, if the head is a known one, its entry in cards.yaml."""
        taps = [[tap.layer, tap.point] for tap in self._taps]
        known = OmegaConf.to_container(OmegaConf.load(CARDS))
        makers = known.get(str(self.head)) if isinstance(known, dict) else None
        entry = {"known": makers} if makers else {}
        return {**self._loaded.card, "taps": taps, **self._drafted.card(), **entry}

    @property
    @override
    def training_prompts(self) -> Sequence[Path]:
        return prompts_beside(self._loaded.card)

    @override
    def check(self, prompts: Sequence[Sequence[int]]) -> None:
        """Compare both readings of the tapped layers by how often the head is right."""
        if self.head != "random" and reads_blocks(self._taps):
            refuse_misread(self._target, self.network, self._taps, prompts, self.head)

    @override
    def begin_training(self, counts: Tensor, rows: Sequence[TrainingRow], seed: int) -> torch.nn.Module:
        """Start from fresh weights if the head is `random`, else from the head's weights.

        Raises:
            ConfigError: there is an objective over trees, and no trained head that grows some.
        """
        if self.objective and self.head == "random":
            raise ConfigError(
                "start=random: trees are compared with those of the head that the training starts from;"
                " give a trained one with start=FOLDER (or a hub id)"
            )
        self._scale: Tensor | None = None
        if self.network.reads_raw_features:
            self._scale = feature_scale(torch.cat([torch.cat(row.taps, dim=-1) for row in rows]))
        network = self._loaded.head
        if self.head == "random":
            self._student = fresh_head(network, counts, self._target, seed)
        else:
            self._student = unfolded(network, self._scale)
        self._student.train().requires_grad_(True)
        if self._student.embed_tokens is not None:
            self._student.embed_tokens.requires_grad_(False)
        self._vocabulary = DraftVocabulary(self._student, self._target)
        self._seed = seed
        if self.objective:
            self._trees = self._grown_by(self._student)
            # Not part of the module: a resumed training makes the same copy of the head that it started from.
            self._reference = self._grown_by(deepcopy(self._student).requires_grad_(False))
        return self._student

    def _grown_by(self, head: DraftHead) -> HeadTrees:
        return HeadTrees(
            head=head,
            target=self._target,
            policy=self.tree,
            vocabulary=self._vocabulary,
            scale=self._scale,
        )

    @override
    def loss(self, rows: Sequence[TrainingRow], step: TrainingStep) -> Loss:
        """The sum over the positions of a draft; loss and accuracy of each for the curves."""
        (row,) = rows
        features = torch.cat(row.taps, dim=-1).float()
        features = features if self._scale is None else features / self._scale
        steps = self._student.training_steps(features, row, self._target, self.recipe, self._vocabulary)
        total = torch.stack([self.recipe.decay**number * one.loss for number, one in enumerate(steps)]).sum()
        numbers: dict[str, float] = {}
        for number, one in enumerate(steps):
            numbers[f"loss_{number}"] = float(one.loss.detach())
            numbers[f"accuracy_{number}"] = float(one.num_right) / max(one.num_rows, 1)
        if self.objective:
            term = self.objective.term(
                self._trees,
                self._reference,
                self._target,
                row,
                counting_rows(row, 0),
                f"{self._seed}:{step.number}",
            )
            numbers |= {"token_loss": float(total.detach()), **term.numbers}
            total = total + self.objective.weight * term.loss
        return Loss(total=total, numbers=numbers)

    @override
    def deploy(self) -> None:
        head = folded(self._student, self._scale).place(self._target.device, self._dtype(self._target))
        self.use_head(self._drafted.narrow(head, self._target), self._taps)

    @override
    def export(self, folder: Path, card: dict[str, Any]) -> None:
        """Write the head in float16, as the official heads are."""
        head = folded(self._student, self._scale).place(torch.device("cpu"), torch.float16)
        aux = [tap.layer for tap in self._taps] if reads_blocks(self._taps) else None
        training = {**card.get("training", {}), "recipe": dataclasses.asdict(self.recipe)}
        if self.objective:
            training["objective"] = dataclasses.asdict(self.objective)
        save_head(head, folder, aux_layers=aux, card={**card, "training": training})

    def _load(self, target: TargetView) -> LoadedHead:
        config, dtype = target.config, self._dtype(target)
        facts = TargetFacts(
            hidden_size=config.hidden_size, vocab_size=target.vocab_size, num_layers=config.num_hidden_layers
        )
        if self.head is None:
            raise ConfigError(
                "head: none is known for this target; give one of the architecture"
                f" {self.architecture!r} with methods.NAME.head=FOLDER (or a hub id ORG/NAME),"
                " or `random` to measure the shape alone"
            )
        if self.head == "random":
            return random_head(
                architecture=self.architecture,
                target=facts,
                like=config,
                draft_vocab_size=self.draft_vocab_size,
                dtype=dtype,
                device=target.device,
                seed=self.seed,
            )
        return load_head(
            self.head,
            revision=self.revision,
            architecture=self.architecture,
            target=facts,
            dtype=dtype,
            device=target.device,
            norm_output=self.norm_output,
            norm_before_residual=self.norm_before_residual,
        )

    def _dtype(self, target: TargetView) -> torch.dtype:
        dtype: torch.dtype = target.dtype if self.dtype == "target" else getattr(torch, self.dtype)
        return dtype
