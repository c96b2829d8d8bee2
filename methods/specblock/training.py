"""SpecBlock's training: blocks are unrolled on their own outputs, and a slot counts where all before it were
right.

Shi et al. 2026, arXiv 2605.07243, and the release. Block 1 starts at every position, a later block from a
slot drawn for the whole call. In the release a row of a later block also sees that block's rows at earlier
positions, which do not exist in drafting; here it does not, unless `mask=released`. Where this departs from
the release: one row holds several documents, and a row counts where drafting would ask for its guess: all
tokens from the known one to the guessed one are of one answer.

Shapes: L tokens of a packed row, R rows that are unrolled, K slots, H hidden size, V draft vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from harness.config import configurable
from methods.shared.eagle.heads.layer import Attend
from methods.shared.one_call.packed import Goals, attended, cross_entropy, spans_of
from methods.specblock.network import RANK_CLASSES, BlockNetwork

_RANK_BOUNDS = (1, 4, 10)
"""Ranks, counted from 0, at which the second, third and last class begin."""


@configurable
class SpecBlockRecipe:
    """The terms of the loss and their weights."""

    num_blocks: int = Field(default=3, ge=1)
    """Blocks that are unrolled."""
    slot_decay: float = Field(default=0.8, gt=0, le=1)
    """Weight of a slot relative to the slot before it."""
    rank_weight: float = Field(default=1.0, ge=0)
    """Weight of the rank head's loss."""
    rank_budget: int = Field(default=10, ge=1)
    """Rows of a class of rank from which on more of them count no more; release."""
    rank_topk: int = Field(default=20, ge=11)
    """Tokens whose distribution the rank head reads."""
    valid_prefix: bool = True
    """A slot counts only where all slots before it in its block guessed the target's token."""
    prefix_from: float = Field(default=0.0, ge=0, le=1)
    """Share of the training during which all slots count, because later slots learn nothing before the first
    is right; 0 as in the release."""
    mask: Literal["decoding", "released"] = "decoding"
    """Whether later blocks see what they will see in drafting, or what they saw in the release's training."""
    draft_loss_topk: int | None = Field(default=None, ge=1)
    """Count only so many of the target's most probable tokens, not renormalised; None: all."""
    row_share: float = Field(default=1.0, gt=0, le=1)
    """Share of the counting rows that is drawn to have a loss. A small share saves most of the work and
    leaves the expected loss unchanged. The released mask needs all."""


@dataclass(frozen=True)
class BlockLoss:
    """The losses of a block."""

    draft: Tensor
    """[K]: the cross entropy of every slot, 0 where no row counts."""
    rank: Tensor
    """The rank head's, a scalar."""
    num_right: list[float]
    """Per slot, counting rows whose best token is the target's."""
    num_rows: list[int]
    """Per slot, counting rows."""
    class_right: tuple[float, int]
    """Rows whose class of rank was estimated right, and all rows of the rank head's loss."""


def block_loss(
    network: BlockNetwork,
    outputs: Tensor,
    rows: Tensor,
    offset: int,
    goals: Goals,
    recipe: SpecBlockRecipe,
    valid_prefix: bool,
) -> BlockLoss:
    """The losses of a block of R rows with outputs [R, K, H].

    offset: how many tokens after the known one of its row the block's own known token comes.
    """
    begins = goals.find(rows, 0)[2]
    right_so_far, class_so_far = begins.clone(), begins.clone()
    draft, num_right, num_rows = [], [], []
    rank = _RankLoss(recipe)
    for slot in range(outputs.shape[1]):
        place, known, counts = goals.find(rows, offset + slot)
        drafted = counts & (right_so_far if valid_prefix else begins)
        ranked = counts & class_so_far
        needed = (known & (right_so_far | class_so_far | drafted)).nonzero()[:, 0]
        states = outputs[needed, slot]
        logits, probs = network.logits(states).float(), goals.probs[place[needed]]
        best = probs.argmax(-1)
        right = logits.argmax(-1) == best
        chosen = drafted[needed]
        draft.append(cross_entropy(logits[chosen], _likeliest(probs[chosen], recipe.draft_loss_topk)))
        num_right.append(float(right[chosen].sum()))
        num_rows.append(int(chosen.sum()))
        class_right = rank.add(
            network.rank_logits(states, logits, recipe.rank_topk), logits.detach(), best, ranked[needed]
        )
        right_so_far &= torch.zeros_like(known).index_put((needed,), right)
        class_so_far &= torch.zeros_like(known).index_put((needed,), class_right)
    return BlockLoss(torch.stack(draft), rank.mean(outputs), num_right, num_rows, rank.found)


def _likeliest(probs: Tensor, count: int | None) -> Tensor:
    """Distributions [n, V] of which only the largest probabilities are left; None: all."""
    if count is None:
        return probs
    best = probs.topk(count, dim=-1)
    return torch.zeros_like(probs).scatter(-1, best.indices, best.values)


class _RankLoss:
    """The rank head's loss over the slots of a block.

    Cross entropy to labels that leave some mass to neighbouring classes, more to those that search too far
    than to those that stop too early. A row weighs more the further its estimate is off, twice as much where
    it stops too early, and less where its class is frequent.
    """

    def __init__(self, recipe: SpecBlockRecipe) -> None:
        self._budget = recipe.rank_budget
        self._sum: Tensor | None = None
        self._weight: Tensor | None = None
        self.found = (0.0, 0)

    def add(self, guessed: Tensor, logits: Tensor, best: Tensor, counts: Tensor) -> Tensor:
        """Take in a slot of n rows; [n] bool, whether the class is estimated right.

        guessed [n, 4]: logits of the classes. logits [n, V]: of the slot. best [n]: the target's token.
        """
        bounds = torch.tensor(_RANK_BOUNDS, device=logits.device)
        place = (logits > logits.gather(-1, best[:, None])).sum(-1)
        true, estimate = torch.bucketize(place, bounds, right=True), guessed.argmax(-1)
        chosen = counts.nonzero()[:, 0]
        label, guess = true[chosen], estimate[chosen]
        classes = torch.arange(RANK_CLASSES, device=logits.device)
        share = 1 / (1 + _distance(label[:, None], classes)) ** 2
        share = share / share.sum(-1, keepdim=True)
        losses = -(share * guessed[chosen].float().log_softmax(-1)).sum(-1)
        frequency = torch.bincount(label, minlength=RANK_CLASSES).clamp(min=1)
        shares = (self._budget / frequency).clamp(max=1)[label]
        # As in the release, how far an estimate is off scales its loss, and is not divided by.
        total, weight = (losses * shares * (1 + _distance(label, guess))).sum(), shares.sum()
        self._sum = total if self._sum is None else self._sum + total
        self._weight = weight if self._weight is None else self._weight + weight
        right = true == estimate
        self.found = self.found[0] + float(right[chosen].sum()), self.found[1] + len(chosen)
        return right

    def mean(self, like: Tensor) -> Tensor:
        """The weighted mean over all rows so far."""
        if self._sum is None or self._weight is None:
            return like.new_zeros(())
        return self._sum / self._weight.clamp(min=1e-6)


def _distance(true: Tensor, other: Tensor) -> Tensor:
    """How far a class is from the true one; stopping too early counts twice."""
    return (other - true).abs() + (true - other).clamp(min=0)


class Unrolling:
    """The network over a packed row: its first blocks, then later ones on their own outputs."""

    def __init__(
        self,
        network: BlockNetwork,
        document: Tensor,
        positions: Tensor,
        rows: Tensor,
        mask: Literal["decoding", "released"],
    ) -> None:
        """document, positions [L]: see `TrainingRow`. rows [R] int64, ascending: those that are unrolled."""
        self._network, self._rows, self._mask = network, rows, mask
        self._positions = positions
        self._spans = spans_of(document)
        self._first: list[tuple[Tensor, Tensor]] = []
        self._own: list[list[tuple[Tensor, Tensor]]] = []
        """Per block, of which the first is block 1 at the unrolled rows, per layer: keys and values [R, kv,
        K, D]."""
        self._lengths: list[int] = []

    def first(self, features: Tensor, embedded: Tensor) -> Tensor:
        """Outputs [R, K, H] of block 1. features [L, F], embedded [L, H]: of the token after each of them."""
        network, slots = self._network, self._network.shape.num_slots
        attend = self._attend_first
        outputs = network(network.condition(features)[None], embedded[None], self._positions[None], attend)
        self._own.append(
            [
                (_by_row(keys, slots)[self._rows], _by_row(values, slots)[self._rows])
                for keys, values in self._first
            ]
        )
        chosen: Tensor = outputs[0, self._rows]
        return chosen

    def later(self, outputs: Tensor, length: int, embedded: Tensor) -> Tensor:
        """Outputs [R, K, H] of the next block.

        outputs: of the block before, of which `length` slots are taken. embedded [R, H]: of the last taken
        token.
        """
        self._lengths.append(length)
        self._own.append([])
        positions = self._positions[self._rows]
        found: Tensor = self._network(
            outputs[None, :, length - 1], embedded[None], positions[None], self._attend_later
        )
        return found[0]

    def _attend_first(self, layer: int) -> Attend:
        slots = self._network.shape.num_slots

        def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            self._first.append((key, value))
            return attended(self._spans, slots, query, key, value)

        return attend

    def _attend_later(self, layer: int) -> Attend:
        slots = self._network.shape.num_slots

        def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            groups = query.shape[1] // key.shape[1]
            self._own[-1].append((_by_row(key, slots), _by_row(value, slots)))
            asked = _by_row(query, slots) / math.sqrt(query.shape[-1])
            pieces = [self._seen(asked, layer, span, groups) for span in self._spans]
            return torch.cat(pieces).flatten(0, 1)[None]

        return attend

    def _seen(self, asked: Tensor, layer: int, span: slice, groups: int) -> Tensor:
        """Attention [r, K, A, D] of the unrolled rows of one document. asked [R, A, K, D]."""
        chosen = ((self._rows >= span.start) & (self._rows < span.stop)).nonzero()[:, 0]
        rows, query, slots = self._rows[chosen], asked[chosen], asked.shape[2]
        here = slice(span.start * slots, span.stop * slots)
        scores: list[Tensor] = []
        values: list[Tensor] = []
        keys, held = (_repeated(part[0, :, here], groups, 0) for part in self._first[layer])
        places = torch.arange(span.start, span.stop, device=rows.device).repeat_interleave(slots)
        behind = (places < rows[:, None])[:, None, None]
        scores.append(_product(query, keys.transpose(-1, -2)).masked_fill(~behind, -math.inf))
        values.append(held)
        for number, block in enumerate(self._own):
            own, held = (_repeated(part[chosen], groups, 1) for part in block[layer])
            among = torch.ones(slots, slots, dtype=torch.bool, device=rows.device)
            if number + 1 < len(self._own):
                among &= torch.arange(slots, device=rows.device) < self._lengths[number]
            else:
                among = among.tril()
            scores.append((query @ own.transpose(-1, -2)).masked_fill(~among, -math.inf))
            values.append(held)
        if self._mask == "released":
            own, held = (_repeated(part[chosen], groups, 1) for part in self._own[-1][layer])
            own, held = (part.transpose(0, 1).flatten(1, 2) for part in (own, held))
            behind = (rows.repeat_interleave(slots) < rows[:, None])[:, None, None]
            scores.append(_product(query, own.transpose(-1, -2)).masked_fill(~behind, -math.inf))
            values.append(held)
        weights = torch.cat(scores, dim=-1).float().softmax(-1).to(query.dtype)
        parts = torch.split(weights, [one.shape[-1] for one in scores], dim=-1)
        output = torch.stack([_product(part, held) for part, held in zip(parts, values, strict=True)]).sum(0)
        return output.transpose(1, 2)


def _product(left: Tensor, right: Tensor) -> Tensor:
    """The product [r, A, K, n] of left [r, A, K, m] and right, which is [r, A, m, n], or [A, m, n] for all
    rows."""
    if right.ndim == 4:
        return left @ right
    # Broadcast over the rows, `right` would be copied for each of them.
    rows, heads, count, _ = left.shape
    joined = left.transpose(0, 1).flatten(1, 2) @ right
    return joined.view(heads, rows, count, right.shape[-1]).transpose(0, 1)


def _by_row(part: Tensor, slots: int) -> Tensor:
    """[R, A, K, D] of one packed row [1, A, R * K, D]."""
    return part[0].view(part.shape[1], -1, slots, part.shape[-1]).transpose(0, 1)


def _repeated(part: Tensor, groups: int, dim: int) -> Tensor:
    return part if groups == 1 else part.repeat_interleave(groups, dim=dim)


def drawn_lengths(recipe: SpecBlockRecipe, num_slots: int) -> Sequence[int]:
    """After how many slots each further block starts, by torch's CPU generator."""
    return [int(torch.randint(1, num_slots + 1, ())) for _ in range(recipe.num_blocks - 1)]
