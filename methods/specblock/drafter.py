"""SpecBlock (Shi et al. 2026, arXiv 2605.07243): blocks of dependent guesses, two calls of a small network a
round.

The first call guesses K tokens after the pending one and, for each, how far down its list the target's token
may stand. The tree branches accordingly, and the second call guesses K more tokens after every branch. Where
this departs from the release: each row (feature, next token) enters the cache once, at its own position, as
in training; the release's decoding shifts tokens by one and skips positions, see `methods.specblock.rows`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor
from typing_extensions import override

from harness.config import ConfigError, configurable
from harness.drafting.drafter import TargetView
from harness.drafting.trainable import Loss, TrainingRow, TrainingStep
from methods.shared.draft_vocabulary import lm_head_rows
from methods.shared.eagle.training import counting_rows
from methods.shared.one_call.checkpoint import Layout
from methods.shared.one_call.network import NetworkShape
from methods.specblock.checkpoint import LAYOUT, save
from methods.specblock.growth import BlockGrowth
from methods.specblock.network import BlockShape
from methods.specblock.online import OnlineRowsDrafter
from methods.specblock.steps import BlockSteps
from methods.specblock.training import SpecBlockRecipe, Unrolling, block_loss, drawn_lengths
from methods.specblock.tree import RankTree

_LM_HEAD_SCALE = 0.2


@configurable
class SpecBlock(OnlineRowsDrafter):
    """Drafts trees of blocks."""

    layout: ClassVar[Layout[Any, Any]] = LAYOUT
    rank_topk: int = Field(default=20, ge=10)
    """Tokens whose distribution the rank head reads: 20 as in training; 10 in the released inference."""
    num_slots: int = Field(default=4, ge=1)
    """Tokens of a block of a random network, and its layers below."""
    num_layers: int = Field(default=2, ge=1)
    shift: bool = True
    """Slots are fused with their predecessors between layers; without, for an ablation."""
    broadcast: bool = True
    """All slots read the known position; else the first alone does, for an ablation."""
    recipe: SpecBlockRecipe = Field(default_factory=SpecBlockRecipe)
    """Its training."""

    @override
    def bind(self, target: TargetView) -> None:
        """Load the network.

        Raises:
            ConfigError: there is no such network, or it does not fit the target or the tree.
        """
        super().bind(target)
        width = self.network.shape.draft_vocab_size
        if self.rank_topk > width:
            raise ConfigError(f"rank_topk={self.rank_topk}: the head's vocabulary has only {width} tokens")

    @override
    def new_shape(self, sizes: dict[str, Any]) -> NetworkShape:
        return BlockShape(
            **sizes,
            num_layers=self.num_layers,
            num_slots=self.num_slots,
            shift=self.shift,
            broadcast=self.broadcast,
        )

    @override
    def new_steps(self, network: Any) -> BlockSteps:
        sizes = [self.tree.num_expanded] if isinstance(self.tree, RankTree) else []
        return BlockSteps(
            self._target, network, rank_topk=self.rank_topk, tree_sizes=[size for size in sizes if size]
        )

    @property
    @override
    def trained_with(self) -> SpecBlockRecipe:
        return self.recipe

    @override
    def new_growth(self, row: int | None = None) -> BlockGrowth:
        steps = self.one_call_steps
        assert isinstance(steps, BlockSteps)
        return BlockGrowth(steps, row, self.skipped(row))

    @property
    @override
    def tree_rows(self) -> tuple[Sequence[int], int]:
        rows, most = super().tree_rows
        return ((most,), most) if isinstance(self.tree, RankTree) else (rows, most)

    @override
    def initialise(self, student: Any, counts: Tensor, seed: int) -> None:
        super().initialise(student, counts, seed)
        # At full scale, the first steps would mostly undo the target's rows.
        student.lm_head.weight.copy_(
            _LM_HEAD_SCALE * lm_head_rows(self._target, student.drafted_ids)[0].float()
        )

    @override
    def loss(self, rows: Sequence[TrainingRow], step: TrainingStep) -> Loss:
        """The losses of all slots and blocks, and of the rank head; loss and accuracy of each for the
        curves."""
        (row,) = rows
        recipe, student = self.recipe, self.student
        begins = counting_rows(row, 0)
        if recipe.mask == "decoding":
            chosen = self.chosen(begins, recipe.row_share)
        else:
            chosen = torch.arange(len(row.ids), device=begins.device)
        if not len(chosen):
            return Loss(total=torch.zeros((), device=self._target.device, requires_grad=True))
        features, embedded = self.read(row)
        goals = self.goals(row, begins)
        unrolling = Unrolling(student, row.document, row.positions, chosen, recipe.mask)
        outputs = unrolling.first(features, embedded)
        offset, total, numbers = 0, torch.zeros((), device=outputs.device), dict[str, float]()
        weights = recipe.slot_decay ** torch.arange(student.shape.num_slots, device=outputs.device)
        prefix = recipe.valid_prefix and step.number >= recipe.prefix_from * step.num_steps
        for number, length in enumerate([0, *drawn_lengths(recipe, student.shape.num_slots)]):
            if number:
                offset += length
                known = embedded[(chosen + offset).clamp(max=len(row.ids) - 1)]
                outputs = unrolling.later(outputs, length, known)
            found = block_loss(student, outputs, chosen, offset, goals, recipe, prefix)
            total = total + (found.draft * weights).sum() + recipe.rank_weight * found.rank
            numbers[f"rank_{number}"] = found.class_right[0] / max(found.class_right[1], 1)
            for slot, (right, count) in enumerate(zip(found.num_right, found.num_rows, strict=True)):
                numbers[f"accuracy_{number}_{slot}"] = right / max(count, 1)
        return Loss(total=total, numbers=numbers)

    @override
    def save(self, network: Any, folder: Path, card: dict[str, Any]) -> None:
        save(network, folder, card)
