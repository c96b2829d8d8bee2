"""FastEagle (Huang et al. 2025, arXiv 2509.20416): as many layers as tokens to guess, and one call a round.

What the paper's readable part leaves open is an option with our default: the loss (`CascadeRecipe`), the
tree's budget (`BackboneTree`), and details of the network (`methods.fasteagle.network`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import smooth_l1_loss
from typing_extensions import override

from harness.config import configurable
from harness.drafting.draft import Draft
from harness.drafting.trainable import Loss, TrainingRow, TrainingStep
from methods.fasteagle.checkpoint import LAYOUT
from methods.fasteagle.growth import CascadeGrowth, CascadeSteps
from methods.fasteagle.network import CascadeShape
from methods.shared.eagle.heads.layer import Attend
from methods.shared.eagle.training import counting_rows
from methods.shared.one_call.checkpoint import Layout
from methods.shared.one_call.network import NetworkShape
from methods.shared.one_call.online import LastRow, OnlineOneCall
from methods.shared.one_call.packed import attended, cross_entropy, spans_of


@configurable
class CascadeRecipe:
    """The terms of the loss and their weights. The paper supervises every layer; it is not known how."""

    decay: float = Field(default=0.8, gt=0, le=1)
    """Weight of a level relative to the level before it."""
    supervised: Literal["all", "last"] = "all"
    """Whether all levels have a loss, or the last alone, for an ablation."""
    feature_weight: float = Field(default=0.0, ge=0)
    """Weight of the distance (SmoothL1) to the state that the target's LM head reads, beside the cross
    entropy."""
    row_share: float = Field(default=1.0, gt=0, le=1)
    """Share of the counting rows that is drawn to have a loss. A small share saves most of the LM head's work
    and leaves the expected loss unchanged."""


@configurable
class FastEagle(OnlineOneCall):
    """Drafts a chain with leaves beside it from one call of a cascade."""

    layout: ClassVar[Layout[Any, Any]] = LAYOUT
    num_levels: int = Field(default=7, ge=1)
    """Layers of a random network, and tokens that it guesses."""
    recipe: CascadeRecipe = Field(default_factory=CascadeRecipe)
    """Its training."""

    @override
    def new_shape(self, sizes: dict[str, Any]) -> NetworkShape:
        return CascadeShape(**sizes, num_layers=self.num_levels)

    @override
    def new_steps(self, network: Any) -> CascadeSteps:
        return CascadeSteps(self._target, network)

    @property
    @override
    def trained_with(self) -> CascadeRecipe:
        return self.recipe

    @override
    def new_growth(self, row: int | None = None) -> CascadeGrowth:
        steps = self.one_call_steps
        assert isinstance(steps, CascadeSteps)
        return CascadeGrowth(steps, row)

    @property
    @override
    def tree_rows(self) -> tuple[Sequence[int], int]:
        return (), 0

    @override
    def output_parameters(self) -> Sequence[torch.nn.Parameter]:
        return []

    @override
    def recalled(self, last: LastRow, draft: Draft, rows: Tensor) -> Callable[[], Tensor]:
        """A level's guesses do not depend on the node that they follow."""
        levels = torch.nn.functional.pad(draft.depths[0], (1, 0))[rows].tolist()
        steps = self.one_call_steps
        assert isinstance(steps, CascadeSteps)
        vocabulary = steps.vocabulary

        def guesses() -> Tensor:
            outputs = last.outputs(torch.ones(1, 1, dtype=torch.bool, device=rows.device))[0][0, 0]
            states = torch.stack([self._learned.normed(outputs[level], level) for level in levels])
            return vocabulary.logits(states)

        return guesses

    @override
    def loss(self, rows: Sequence[TrainingRow], step: TrainingStep) -> Loss:
        """The sum over the levels; loss and accuracy of each for the curves."""
        (row,) = rows
        recipe, student = self.recipe, self.student
        begins = counting_rows(row, 0)
        chosen = self.chosen(begins, recipe.row_share)
        if not len(chosen):
            return Loss(total=torch.zeros((), device=self._target.device, requires_grad=True))
        outputs, goals = self.outputs_of(row)[chosen], self.goals(row, begins)
        total, numbers = torch.zeros((), device=outputs.device), dict[str, float]()
        last = outputs.shape[1] - 1
        for level in range(last + 1):
            place, _, counts = goals.find(chosen, level)
            states = student.normed(outputs[counts, level], level)
            logits, probs = self.vocabulary.logits(states), goals.probs[place[counts]]
            loss = cross_entropy(logits, probs)
            right = (logits.argmax(-1) == probs.argmax(-1)).sum()
            if recipe.feature_weight and len(states):
                wanted = row.final[chosen[counts] + 1 + level].float()
                loss = loss + recipe.feature_weight * smooth_l1_loss(states, wanted)
            if recipe.supervised == "all" or level == last:
                total = total + recipe.decay**level * loss
            numbers[f"loss_{level}"] = float(loss.detach())
            numbers[f"accuracy_{level}"] = float(right) / max(len(states), 1)
        return Loss(total=total, numbers=numbers)

    def outputs_of(self, row: TrainingRow) -> Tensor:
        """The student's outputs [L, N, H] for a packed row; documents do not see each other."""
        student, spans = self.student, spans_of(row.document)

        def attend(layer: int) -> Attend:
            return lambda query, key, value: attended(spans, 1, query, key, value)

        features, embedded = self.read(row)
        outputs: Tensor = student(
            student.condition(features)[None], embedded[None], row.positions[None], attend
        )
        return outputs[0]
