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
from pathlib import Path
from typing import Any, Literal

import torch
from omegaconf import OmegaConf
from pydantic import Field
from torch import Tensor
from typing_extensions import override

from harness.config import ConfigError, configurable
from harness.drafting.drafter import HiddenTap, TargetView
from harness.drafting.trainable import Loss, TrainingRow, TrainingStep
from harness.runtime.cache import SlotCache
from methods.shared.eagle.checkpoint import LoadedHead, TargetFacts, load_head, random_head, save_head
from methods.shared.eagle.files import CARDS
from methods.shared.eagle.growth import Growth
from methods.shared.eagle.heads.base import Architecture, AuxLayers
from methods.shared.eagle.online import OnlineHeadDrafter
from methods.shared.eagle.steps import HeadSteps
from methods.shared.eagle.training import (
    DraftVocabulary,
    EagleRecipe,
    feature_scale,
    folded,
    fresh_head,
    unfolded,
)

_MARGIN = 0.1
"""By how much the other reading of the tapped layers must be right more often; few rows are noisy."""
_OTHER_POINT = {"input": "output", "output": "input"}


@configurable
class Eagle(OnlineHeadDrafter):
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
    seed: int = Field(default=0, ge=0)
    recipe: EagleRecipe = Field(default_factory=EagleRecipe)
    """Its training."""

    @override
    def bind(self, target: TargetView) -> None:
        """Load the head.

        Raises:
            ConfigError: there is no such head, or it does not fit the target or the tree.
        """
        super().bind(target)
        self._loaded = self._load(target)
        network = self._loaded.head
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
        self.use(network, taps)

    @override
    def card(self) -> dict[str, Any]:
        """The card of the head, its taps and, if the head is a known one, its entry in cards.yaml."""
        taps = [[tap.layer, tap.point] for tap in self._taps]
        known = OmegaConf.to_container(OmegaConf.load(CARDS))
        makers = known.get(str(self.head)) if isinstance(known, dict) else None
        return {**self._loaded.card, "taps": taps, **({"known": makers} if makers else {})}

    @override
    def check(self, prompts: Sequence[Sequence[int]]) -> None:
        """Compare both readings of the tapped layers by how often the head is right."""
        if self.head == "random" or not self._reads_blocks:
            return
        others = tuple(HiddenTap(tap.layer, _OTHER_POINT[tap.point]) for tap in self._taps)
        num_right = num_right_otherwise = num_rows = 0
        for prompt in prompts:
            if len(prompt) < 3:
                continue
            ids = torch.tensor([list(prompt)], device=self._target.device)
            logits, states = self._target.trace(ids, (*self._taps, *others))
            best = logits[:, 1:].argmax(-1)
            num_right += int((self._guess(ids, states[: len(others)]) == best).sum())
            num_right_otherwise += int((self._guess(ids, states[len(others) :]) == best).sum())
            num_rows += best.shape[1]
        if num_right_otherwise - num_right > _MARGIN * num_rows:
            given, layers = self._taps[0].point, [tap.layer for tap in self._taps]
            other = _OTHER_POINT[given]
            raise ConfigError(
                f"aux_convention: fed the {given}s of blocks {layers}, the head {self.head} guesses"
                f" {num_right / num_rows:.0%} of the target's tokens, but fed their {other}s"
                f" {num_right_otherwise / num_rows:.0%}; type aux_convention={other} for this method"
            )

    @property
    def _reads_blocks(self) -> bool:
        """Whether the taps are blocks' inputs or outputs, which can be mistaken for one another."""
        return all(tap.point in _OTHER_POINT for tap in self._taps)

    @override
    def begin_training(self, counts: Tensor, rows: Sequence[TrainingRow], seed: int) -> torch.nn.Module:
        """Start from fresh weights if the head is `random`, else from the head's weights."""
        self._scale: Tensor | None = None
        if self.network.reads_raw_features:
            self._scale = feature_scale(torch.cat([torch.cat(row.taps, dim=-1) for row in rows]))
        if self.head == "random":
            self._student = fresh_head(self.network, counts, self._target, seed)
        else:
            self._student = unfolded(self.network, self._scale)
        self._student.train().requires_grad_(True)
        if self._student.embed_tokens is not None:
            self._student.embed_tokens.requires_grad_(False)
        self._vocabulary = DraftVocabulary(self._student, self._target)
        return self._student

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
        return Loss(total=total, numbers=numbers)

    @override
    def deploy(self) -> None:
        head = folded(self._student, self._scale).place(self._target.device, self._dtype(self._target))
        self.use(head, self._taps)

    @override
    def export(self, folder: Path, card: dict[str, Any]) -> None:
        """Write the head in float16, as the official heads are."""
        head = folded(self._student, self._scale).place(torch.device("cpu"), torch.float16)
        aux = [tap.layer for tap in self._taps] if self._reads_blocks else None
        training = {**card.get("training", {}), "recipe": dataclasses.asdict(self.recipe)}
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

    def _guess(self, ids: Tensor, states: Sequence[Tensor]) -> Tensor:
        """The head's most probable tokens [1, n - 1]: token i + 2 from feature i and token i + 1."""
        steps = HeadSteps(self._target, self.network, SlotCache())
        growth = Growth(steps)
        growth.begin(1)
        dtype = self.network.fc.weight.dtype
        features = torch.cat([state.to(dtype) for state in states], dim=-1)[:, :-1]
        guessed = growth.feed(features, ids[:, 1:], [features.shape[1]])
        return steps.best(guessed, 1).tokens[..., 0]
