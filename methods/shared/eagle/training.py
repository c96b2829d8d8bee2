"""The losses of draft heads: feature regression for EAGLE-1/2, training-time test for EAGLE-3.

EAGLE-1/2 (Li et al. 2024, arXiv 2401.15077, section 3.2): SmoothL1 to the next feature, and a tenth of the
cross
entropy behind the target's LM head. EAGLE-3 (arXiv 2503.01840, section 3.2): the head is unrolled on its own
outputs. At step j a row sees the rows of step 0 up to itself, but only its own row of every later step,
exactly as in drafting. The tokens are the true ones at every step.

Where the code departs from the official trainer: one row holds several documents, the loss is normalised by
the
rows that count (not by all rows), and a row counts where drafting would ask for its guess: the token to guess
and the one before it are both the assistant's.

Shapes: L tokens of one packed row, S rows that count, H hidden size of the head, F features, V draft tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import smooth_l1_loss

from harness.config import configurable
from harness.drafting.drafter import TargetView
from harness.drafting.trainable import TrainingRow
from methods.shared.draft_vocabulary import DraftVocabulary, lm_head_rows, map_of_most_frequent
from methods.shared.eagle.heads.base import DraftHead
from methods.shared.soft_targets import soft_cross_entropy

_INIT_STD = 0.02
_LM_HEAD_SCALE = 0.2


@configurable
class EagleRecipe:
    """The terms of the loss and their weights."""

    ttt_length: int = Field(default=7, ge=1)
    """Number of unrolled steps (EAGLE-3)."""
    decay: float = Field(default=0.8, gt=0, le=1)
    """Weight of a step relative to the step before it."""
    loss_norm: Literal["mask", "all"] = "mask"
    """Divide the loss by the number of counting rows (`mask`) or of all rows (`all`, the official way)."""
    goals: Literal["soft", "hard"] = "soft"
    """Whether guesses are compared with the target's distribution or with its most probable token."""
    oov_mask: bool = True
    """Leave out rows whose most probable token is not in the draft vocabulary."""
    row_share: float = Field(default=1.0, gt=0, le=1)
    """Share of the counting rows that is drawn to be unrolled beyond step 0 (EAGLE-3) or to have a cross
    entropy (EAGLE-1/2). A small share saves most of the work and leaves the expected loss unchanged."""
    noise: float = Field(default=0.1, ge=0)
    """Half-width of the uniform noise on the features (EAGLE-1/2)."""
    ce_weight: float = Field(default=0.1, ge=0)
    """Weight of the cross entropy beside the regression (EAGLE-1/2)."""


@dataclass(frozen=True)
class Step:
    """One unrolled step."""

    loss: Tensor
    """A scalar with its gradient."""
    num_right: Tensor
    """Number of rows whose most probable token is the target's; a scalar."""
    num_rows: int
    """Number of rows with a guess."""


@dataclass(frozen=True)
class Goals:
    """What the guesses of S rows are compared with."""

    probs: Tensor
    """[S, V] float32: the target's distribution over the draft vocabulary."""
    best: Tensor
    """[S] int64: the target's most probable token as a draft id, -1 where it has none."""
    counts: Tensor
    """[S] bool: rows that enter the loss."""

    @classmethod
    @torch.no_grad()
    def of(cls, logits: Tensor, best: Tensor, recipe: EagleRecipe) -> Goals:
        """The goals from the target's logits [S, V] over the draft vocabulary, and `best` [S]."""
        counts = best >= 0 if recipe.oov_mask else torch.ones_like(best, dtype=torch.bool)
        if recipe.goals == "soft":
            return cls(logits.float().softmax(-1), best, counts)
        # Where the most probable token cannot be drafted, the most probable one that can be is the goal.
        likeliest = torch.where(best >= 0, best, logits.argmax(-1))
        return cls(
            torch.zeros_like(logits, dtype=torch.float32).scatter_(1, likeliest[:, None], 1), best, counts
        )

    def compare(
        self, guess: Tensor, places: Sequence[Tensor], num_all: Sequence[float], recipe: EagleRecipe
    ) -> list[Step]:
        """The steps with the head's logits `guess` [n, V], of one step behind those of the other.

        places: per step its goals, as indices. num_all: per step the rows in all, counting or not.
        """
        losses, preferred = soft_cross_entropy(guess, self.probs, torch.cat(list(places)))
        steps, begin = [], 0
        for place, rows in zip(places, num_all, strict=True):
            part = slice(begin, begin + len(place))
            begin += len(place)
            counts = self.counts[place]
            count = counts.sum() if recipe.loss_norm == "mask" else torch.tensor(rows, device=guess.device)
            loss = (losses[part] * counts).sum() / count.clamp(min=1)
            steps.append(Step(loss, (preferred[part] == self.best[place]).sum(), len(place)))
        return steps


def counting_rows(row: TrainingRow, step: int) -> Tensor:
    """[L] bool: pairs i whose guess of token i + 2 + step is needed when an answer is drafted."""
    length = row.ids.shape[0]
    counts = torch.zeros(length, dtype=torch.bool, device=row.ids.device)
    room = length - 2 - step
    if room <= 0:
        return counts
    inside = torch.ones(room, dtype=torch.bool, device=row.ids.device)
    # Token i + 1 is the pending token; it and all tokens up to the guessed one must belong to one answer.
    for ahead in range(1, 3 + step):
        inside &= row.answer[ahead : ahead + room] & (
            row.document[ahead : ahead + room] == row.document[:room]
        )
    counts[:room] = inside
    return counts


def unrolled_steps(
    head: DraftHead,
    features: Tensor,
    row: TrainingRow,
    target: TargetView,
    recipe: EagleRecipe,
    vocabulary: DraftVocabulary,
) -> list[Step]:
    """EAGLE-3's loss, step by step. features [L, F]: the input of the head's `fc`."""
    rows = counting_rows(row, 0).nonzero()[:, 0]
    if not len(rows):
        return [_nothing(features)]
    attention = _UnrolledAttention(row.document, rows)
    goals = Goals.of(vocabulary.logits(row.final[rows + 1]), vocabulary.index(row.best[rows + 1]), recipe)
    # The goal of row i at step j is the goal of row i + j at step 0.
    place = torch.zeros_like(row.ids)
    place[rows] = torch.arange(len(rows), device=rows.device)
    states = head.project(features[None])
    embedded = embed(head, target, row.ids.roll(-1)[None])
    outputs = head(embedded, states, row.positions[None], attention.first_step, rows)
    # No step reads the logits of another one, and one product for all of them costs least.
    guessed, places, num_all = list[Tensor](), list[Tensor](), list[float]()
    for number in range(recipe.ttt_length):
        if number:
            unrolled = counting_rows(row, number)[rows]
            if number == 1:
                unrolled &= drawn(len(rows), recipe.row_share, rows.device)
            kept = unrolled.nonzero()[:, 0]
            rows = rows[kept]
            if not len(rows):
                break
            attention.narrow(kept)
            embedded = embed(head, target, row.ids[rows + 1 + number][None])
            outputs = head(
                embedded, outputs[:, kept], row.positions[rows][None] + number, attention.later_step
            )
        guessed.append(outputs[0])
        places.append(place[rows + number])
        num_all.append(len(row.ids) if number == 0 else recipe.row_share * len(row.ids))
    return goals.compare(head.logits(torch.cat(guessed), target), places, num_all, recipe)


def regression_step(
    head: DraftHead, features: Tensor, row: TrainingRow, target: TargetView, recipe: EagleRecipe
) -> Step:
    """EAGLE-1/2's loss. features [L, H]: the target's final hidden states."""
    rows = counting_rows(row, 0).nonzero()[:, 0]
    if not len(rows):
        return _nothing(features)
    attention = _UnrolledAttention(row.document, rows)
    noisy = features
    if recipe.noise:
        noisy = features + (torch.rand_like(features) - 0.5) * (2 * recipe.noise)
    tokens = row.ids.roll(-1)[None]
    embedded = embed(head, target, tokens)
    guessed = head(embedded, noisy[None], row.positions[None], attention.first_step, rows)[0]
    wanted = features[rows + 1]
    count = len(rows) if recipe.loss_norm == "mask" else len(row.ids)
    regression = smooth_l1_loss(guessed, wanted, reduction="none").mean(-1).sum() / count
    scored = drawn(len(rows), recipe.row_share, rows.device).nonzero()[:, 0]
    if not len(scored):
        return Step(regression, torch.zeros((), device=rows.device), 0)
    guess = target.lm_head(guessed[scored].to(target.dtype))
    goals = Goals.of(target.lm_head(wanted[scored].to(target.dtype)), row.best[rows[scored] + 1], recipe)
    every = torch.arange(len(scored), device=rows.device)
    (entropy,) = goals.compare(guess, [every], [recipe.row_share * len(row.ids)], recipe)
    return Step(regression + recipe.ce_weight * entropy.loss, entropy.num_right, entropy.num_rows)


def drawn(count: int, share: float, device: torch.device) -> Tensor:
    """[count] bool: each is true with probability `share`, by torch's CPU generator."""
    chosen = torch.rand(count) < share if share < 1 else torch.ones(count, dtype=torch.bool)
    return chosen.to(device)


def _nothing(features: Tensor) -> Step:
    """The step of a packed row in which no row counts."""
    zero = torch.zeros((), device=features.device)
    return Step(zero.clone().requires_grad_(True), zero, 0)


class _UnrolledAttention:
    """The attention of the unrolled steps, with the keys and values of all steps so far."""

    def __init__(self, document: Tensor, rows: Tensor) -> None:
        length = len(document)
        causal = torch.ones(length, length, dtype=torch.bool, device=document.device).tril()
        self._mask = causal & (document[:, None] == document[None])
        self._rows = rows
        self._first: tuple[Tensor, Tensor] | None = None
        self._later: list[tuple[Tensor, Tensor]] = []

    def first_step(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """An `Attend` for step 0: each row sees all rows of its document up to itself."""
        self._first = key, value
        output = torch.nn.functional.scaled_dot_product_attention(
            query, key, value, attn_mask=self._mask[self._rows], enable_gqa=query.shape[1] != key.shape[1]
        )
        return output.transpose(1, 2)

    def narrow(self, kept: Tensor) -> None:
        """Keep only the rows with these indices."""
        self._rows = self._rows[kept]
        self._later = [(key[:, :, kept], value[:, :, kept]) for key, value in self._later]

    def later_step(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """An `Attend` for later steps: each row sees what it saw in step 0, and its own later rows."""
        assert self._first is not None, "step 0 comes first"
        self._later.append((key, value))
        groups = query.shape[1] // key.shape[1]
        first_key, first_value = (_repeat(part, groups) for part in self._first)
        keys, values = zip(*((_repeat(k, groups), _repeat(v, groups)) for k, v in self._later), strict=True)
        scale = 1 / math.sqrt(query.shape[-1])
        before = (query @ first_key.transpose(2, 3) * scale).masked_fill(~self._mask[self._rows], -math.inf)
        own = torch.stack([(query * part).sum(-1) * scale for part in keys], dim=-1)
        weights = torch.cat([before, own], dim=-1).float().softmax(-1).to(query.dtype)
        length = first_key.shape[2]
        output = weights[..., :length] @ first_value
        for number, part in enumerate(values):
            output = output + weights[..., length + number, None] * part
        return output.transpose(1, 2)


def _repeat(part: Tensor, groups: int) -> Tensor:
    return part if groups == 1 else part.repeat_interleave(groups, dim=1)


def embed(head: DraftHead, target: TargetView, tokens: Tensor) -> Tensor:
    """The embeddings [..., H] of token ids [...], in the head's dtype."""
    embedded = (head.embed_tokens or target.embed)(tokens)
    result: Tensor = embedded.to(head.fc.weight.dtype)
    return result


@torch.no_grad()
def fresh_head(like: DraftHead, counts: Tensor, target: TargetView, seed: int) -> DraftHead:
    """A head of the shape of `like` to be trained, in float32 on the target's device.

    counts [vocabulary of the target]: of the answers' tokens; the most frequent ones make up the draft
    vocabulary. The LM head starts from the target's rows, scaled down: with rows at full scale, the first
    steps would mostly undo them.
    """
    shape = like.shape
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        head = type(like)(shape).to(target.device)
    for name, parameter in head.named_parameters():
        if parameter.ndim > 1 and not name.startswith(("embed_tokens", "lm_head")):
            torch.nn.init.normal_(parameter, std=_INIT_STD)
    ids = torch.arange(shape.draft_vocab_size, device=target.device)
    if shape.draft_vocab_size < shape.vocab_size:
        head.d2t.copy_(map_of_most_frequent(counts.to(target.device), shape.draft_vocab_size))
        ids = ids + head.d2t
    if head.lm_head is not None:
        rows = lm_head_rows(target, ids)[0].float()
        if rows.shape == head.lm_head.weight.shape:
            head.lm_head.weight.copy_(_LM_HEAD_SCALE * rows)
    return head


@torch.no_grad()
def feature_scale(features: Tensor) -> Tensor:
    """Root mean square [F] of features [N, F]; some dimensions are thousands of times larger than others."""
    return features.float().pow(2).mean(0).sqrt().clamp(min=1e-6)


@torch.no_grad()
def folded(head: DraftHead, scale: Tensor | None) -> DraftHead:
    """A copy of the head that reads unscaled features; `head` reads them divided by `scale` [F]."""
    copy: DraftHead = deepcopy(head)
    if scale is not None:
        copy.fc.weight.div_(scale)
    return copy


@torch.no_grad()
def unfolded(head: DraftHead, scale: Tensor | None) -> DraftHead:
    """The inverse of `folded`, in float32, so that an existing head takes steps as large as a fresh one's."""
    copy: DraftHead = deepcopy(head).float()
    if scale is not None:
        copy.fc.weight.mul_(scale)
    return copy
