"""SpecBlock (Shi et al. 2026, arXiv 2605.07243): blocks of dependent guesses, two calls of a small network a
round.

The first call guesses K tokens after the pending one and, for each, how far down its list the target's token
may stand. The tree branches accordingly, and the second call guesses K more tokens after every branch. Where
this departs from the release: each row (feature, next token) enters the cache once, at its own position, as
in training; the release's decoding shifts tokens by one and skips positions, see `methods.specblock.rows`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor
from typing_extensions import override

from harness.config import ConfigError, configurable
from harness.drafting.drafter import HiddenTap, TargetView
from harness.drafting.trainable import Loss, TrainingRow, TrainingStep
from methods.shared.eagle.checkpoint import TargetFacts
from methods.shared.eagle.training import counting_rows, drawn, feature_scale, lm_head_rows
from methods.shared.one_call.checkpoint import Loaded, Sizes, sizes_like
from methods.specblock.checkpoint import LAYOUT, save
from methods.specblock.growth import BlockGrowth
from methods.specblock.network import BlockNetwork, BlockShape, target_layers
from methods.specblock.rows import RowsDrafter
from methods.specblock.steps import BlockSteps
from methods.specblock.training import BlockGoals, BlockRecipe, Unrolling, block_loss, drawn_lengths
from methods.specblock.tree import RankTree

_INIT_STD, _LM_HEAD_SCALE = 0.02, 0.2


@configurable
class SpecBlock(RowsDrafter):
    """Drafts trees of blocks."""

    head: str | None = None
    """A folder, a hub id, a head that ships (a folder of `methods/heads`), or `random`: weights from
    `seed`."""
    revision: str | None = None
    dtype: Literal["target", "float32", "bfloat16", "float16"] = "target"
    """The network's dtype; `target` takes the target's."""
    rank_topk: int = Field(default=20, ge=10)
    """Tokens whose distribution the rank head reads: 20 as in training; 10 in the released inference."""
    draft_vocab_size: int | None = Field(default=None, ge=20)
    """Draft vocabulary of a random network; None is the target's whole vocabulary."""
    num_slots: int = Field(default=4, ge=1)
    """Tokens of a block, and the sizes below: of a random network; None takes the target's."""
    num_layers: int = Field(default=2, ge=1)
    intermediate_size: int | None = Field(default=None, ge=1)
    num_heads: int | None = Field(default=None, ge=1)
    num_kv_heads: int | None = Field(default=None, ge=1)
    shift: bool = True
    """Slots are fused with their predecessors between layers; without, for an ablation."""
    broadcast: bool = True
    """All slots read the known position; else the first alone does, for an ablation."""
    seed: int = Field(default=0, ge=0)
    recipe: BlockRecipe = Field(default_factory=BlockRecipe)
    """Its training."""

    @override
    def bind(self, target: TargetView) -> None:
        """Load the network.

        Raises:
            ConfigError: there is no such network, or it does not fit the target or the tree.
        """
        super().bind(target)
        self._loaded = self._load(target)
        network = self._loaded.network
        width = network.shape.draft_vocab_size
        if max(self.tree.num_children, self.rank_topk) > width:
            raise ConfigError(
                f"tree: {self.tree.num_children} children of a node, rank_topk={self.rank_topk}, but the"
                f" head's vocabulary has {width}"
            )
        # The output of a block is the input of the next one, which EAGLE-3's heads tap and keep on disk.
        layers = target_layers(target.config.num_hidden_layers)
        last = target.config.num_hidden_layers - 1
        taps = (HiddenTap(layer + 1, "input") if layer < last else HiddenTap(layer) for layer in layers)
        self._draft_with(network, tuple(taps))

    @override
    def card(self) -> dict[str, Any]:
        return {**self._loaded.card, "taps": [[tap.layer, tap.point] for tap in self._taps]}

    @property
    @override
    def feature_shape(self) -> tuple[int, torch.dtype]:
        network = self.network
        return network.shape.feature_size, network.lm_head.weight.dtype

    @override
    def new_growth(self, row: int | None = None) -> BlockGrowth:
        return BlockGrowth(self._block_steps, row, self.skipped(row))

    @property
    @override
    def tree_rows(self) -> tuple[Sequence[int], int]:
        rows, most = super().tree_rows
        return ((most,), most) if isinstance(self.tree, RankTree) else (rows, most)

    def _draft_with(self, network: BlockNetwork, taps: tuple[HiddenTap, ...]) -> None:
        self.network = network
        self._target.prepare(network)
        sizes = [self.tree.num_expanded] if isinstance(self.tree, RankTree) else []
        self._block_steps = BlockSteps(
            self._target, network, rank_topk=self.rank_topk, tree_sizes=[size for size in sizes if size]
        )
        self.use(network, taps, self._block_steps)

    def _dtype(self, target: TargetView) -> torch.dtype:
        dtype: torch.dtype = target.dtype if self.dtype == "target" else getattr(torch, self.dtype)
        return dtype

    def _load(self, target: TargetView) -> Loaded[BlockNetwork]:
        config, dtype = target.config, self._dtype(target)
        facts = TargetFacts(
            hidden_size=config.hidden_size, vocab_size=target.vocab_size, num_layers=config.num_hidden_layers
        )
        if self.head is None:
            raise ConfigError(
                "head: none is known for this target; give one with methods.NAME.head=FOLDER,"
                " or `random` to measure the shape alone"
            )
        if self.head != "random":
            return LAYOUT.load(self.head, self.revision, facts, dtype, target.device)
        sizes = Sizes(self.intermediate_size, self.num_heads, self.num_kv_heads)
        shape = BlockShape(
            **sizes_like(facts, config, sizes, self.draft_vocab_size),
            num_layers=self.num_layers,
            num_slots=self.num_slots,
            shift=self.shift,
            broadcast=self.broadcast,
        )
        return LAYOUT.random(shape, dtype, target.device, self.seed)

    @override
    def begin_training(self, counts: Tensor, rows: Sequence[TrainingRow], seed: int) -> torch.nn.Module:
        """Start from fresh weights if the head is `random`, else from the head's weights."""
        self._scale = feature_scale(torch.cat([torch.cat(row.taps, dim=-1) for row in rows]))
        shape, device = self.network.shape, self._target.device
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            student = BlockNetwork(shape).to(device)
        with torch.no_grad():
            if self.head == "random":
                self._initialise(student, counts, seed)
            else:
                student.load_state_dict(self.network.state_dict())
                student.input_layer.condition_proj.weight.mul_(self._scale)
        self._student = student.train().requires_grad_(True)
        ids = student.drafted_ids
        self._place = torch.full((shape.vocab_size,), -1, dtype=torch.int64, device=device)
        self._place[ids] = torch.arange(len(ids), device=device)
        self._head_rows = lm_head_rows(self._target, ids)
        return self._student

    def _initialise(self, student: BlockNetwork, counts: Tensor, seed: int) -> None:
        """Fresh weights; the most frequent tokens [V] are drafted, and their rows begin as the target's,
        scaled."""
        device, size = self._target.device, student.shape.draft_vocab_size
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            for parameter in student.parameters():
                if parameter.ndim > 1:
                    torch.nn.init.normal_(parameter, std=_INIT_STD)
        # A stable sort prefers the lower id of equally frequent tokens; `topk` promises no order.
        kept = counts.to(device).sort(descending=True, stable=True).indices[:size].sort().values
        student.d2t.copy_(kept - torch.arange(size, device=device))
        student.lm_head.weight.copy_(_LM_HEAD_SCALE * lm_head_rows(self._target, kept)[0].float())

    @override
    def loss(self, rows: Sequence[TrainingRow], step: TrainingStep) -> Loss:
        """The losses of all slots and blocks, and of the rank head; loss and accuracy of each for the
        curves."""
        (row,) = rows
        recipe, student = self.recipe, self._student
        begins = counting_rows(row, 0)
        chosen = begins.nonzero()[:, 0]
        if recipe.mask == "decoding":
            chosen = chosen[drawn(len(chosen), recipe.row_share, chosen.device)]
        else:
            chosen = torch.arange(len(row.ids), device=chosen.device)
        if not len(chosen):
            return Loss(total=torch.zeros((), device=self._target.device, requires_grad=True))
        features = torch.cat(row.taps, dim=-1).float() / self._scale
        goals = self._goals(row, begins)
        embed = self._target.embed
        unrolling = Unrolling(student, row.document, row.positions, chosen, recipe.mask)
        outputs = unrolling.first(features, embed(row.ids.roll(-1)).float())
        offset, total, numbers = 0, torch.zeros((), device=outputs.device), dict[str, float]()
        weights = recipe.slot_decay ** torch.arange(student.shape.num_slots, device=outputs.device)
        prefix = recipe.valid_prefix and step.number >= recipe.prefix_from * step.num_steps
        for number, length in enumerate([0, *drawn_lengths(recipe, student.shape.num_slots)]):
            if number:
                offset += length
                tokens = row.ids[(chosen + 1 + offset).clamp(max=len(row.ids) - 1)]
                outputs = unrolling.later(outputs, length, embed(tokens).float())
            found = block_loss(student, outputs, chosen, offset, goals, recipe, prefix)
            total = total + (found.draft * weights).sum() + recipe.rank_weight * found.rank
            numbers[f"rank_{number}"] = found.class_right[0] / max(found.class_right[1], 1)
            for slot, (right, count) in enumerate(zip(found.num_right, found.num_rows, strict=True)):
                numbers[f"accuracy_{number}_{slot}"] = right / max(count, 1)
        return Loss(total=total, numbers=numbers)

    @torch.no_grad()
    def _goals(self, row: TrainingRow, begins: Tensor) -> BlockGoals:
        """The target's distribution after every token that a slot may guess after."""
        places = begins.nonzero()[:, 0]
        weight, bias = self._head_rows
        logits = torch.nn.functional.linear(row.final[places + 1], weight, bias)
        place = torch.full_like(row.ids, -1)
        place[places] = torch.arange(len(places), device=place.device)
        known = torch.zeros_like(begins)
        known[places] = self._place[row.best[places + 1].clamp(min=0)] >= 0
        # Goals of one group are about tokens of one answer, without a gap.
        group = (~begins).cumsum(0) * 2 + begins
        return BlockGoals(logits.float().softmax(-1), place, known, group)

    @torch.no_grad()
    def _folded(self) -> BlockNetwork:
        """A copy of the student that reads features as they are."""
        network = BlockNetwork(self._student.shape)
        network.load_state_dict(self._student.state_dict())
        network.input_layer.condition_proj.weight.div_(self._scale.to(network.lm_head.weight.device))
        return network

    @override
    def deploy(self) -> None:
        self._draft_with(self._folded().place(self._target.device, self._dtype(self._target)), self._taps)

    @override
    def export(self, folder: Path, card: dict[str, Any]) -> None:
        """Write the network in float16, as the release lays it out."""
        network = self._folded().place(torch.device("cpu"), torch.float16)
        training = {**card.get("training", {}), "recipe": dataclasses.asdict(self.recipe)}
        save(network, folder, {**card, "training": training})
