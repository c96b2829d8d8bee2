"""How EAGLE heads learn: feature regression for EAGLE-1/2, training-time test for EAGLE-3.

EAGLE-1/2 (Li et al. 2024, arXiv 2401.15077, section 3.2): SmoothL1 to the next feature and a tenth of the
cross entropy behind the target's LM head. EAGLE-3 (arXiv 2503.01840, section 3.2): the head is unrolled on
its own outputs; at step j a row sees the rows of step 0 up to itself, and of every later step its own row
only, which is what drafting makes it see. Tokens are the true ones at every step.

Where it departs from the official trainer: several documents lie in one row, the loss is normalised by
the rows that count (not by all), and the mask follows what drafting asks: the token to guess and the one
before it are both the assistant's.

Shapes: L tokens of one packed row, S rows that count, H hidden size of the head, F features, V draft tokens.
"""

from __future__ import annotations

import math
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
from methods.shared.eagle.head import Head, HeadShape

_INIT_STD = 0.02
_LM_HEAD_SCALE = 0.2


@configurable
class EagleRecipe:
    """What the loss is made of.

    ttt_length: unrolled steps of EAGLE-3; decay: weight of a step over the one before. loss_norm: divide by
    the rows that count (`mask`) or all rows (`all`, as the official code). oov_mask: leave out rows whose
    likeliest token is not in the draft vocabulary. row_share: of the rows that count, the part that is drawn
    to be unrolled beyond step 0 (EAGLE-3) or to have a cross entropy (EAGLE-1/2): it saves most of the work
    and leaves the mean loss as it is. noise: half-width of the uniform noise on the features of EAGLE-1/2;
    ce_weight: of the cross entropy beside its regression.
    """

    ttt_length: int = Field(default=7, ge=1)
    decay: float = Field(default=0.8, gt=0, le=1)
    loss_norm: Literal["mask", "all"] = "mask"
    oov_mask: bool = True
    row_share: float = Field(default=1.0, gt=0, le=1)
    noise: float = Field(default=0.1, ge=0)
    ce_weight: float = Field(default=0.1, ge=0)


@dataclass(frozen=True)
class Step:
    """One unrolled step: its loss (a scalar), guesses that were right, rows that counted."""

    loss: Tensor
    num_right: Tensor
    num_rows: int


@dataclass(frozen=True)
class Goals:
    """What S rows shall say.

    law [S, V]: the target's, over the draft vocabulary, float32. best [S]: its likeliest token as an index
    there, -1 where it is outside. counts [S] bool: rows of the loss.
    """

    law: Tensor
    best: Tensor
    counts: Tensor

    @classmethod
    @torch.no_grad()
    def of(cls, logits: Tensor, best: Tensor, recipe: EagleRecipe) -> Goals:
        """Of the target's logits [S, V] over the draft vocabulary; best [S] as the class has it."""
        counts = best >= 0 if recipe.oov_mask else torch.ones_like(best, dtype=torch.bool)
        return cls(logits.float().softmax(-1), best, counts)

    def at(self, rows: Tensor) -> Goals:
        """Those of some rows."""
        return Goals(self.law[rows], self.best[rows], self.counts[rows])

    def cross_entropy(self, guess: Tensor, recipe: EagleRecipe, num_all: float) -> Step:
        """Between the law and the head's logits [S, V]. num_all: rows in all, counting or not."""
        losses = -(self.law * guess.float().log_softmax(-1)).sum(-1)
        right = (guess.argmax(-1) == self.best).sum()
        count = (
            self.counts.sum() if recipe.loss_norm == "mask" else torch.tensor(num_all, device=guess.device)
        )
        return Step((losses * self.counts).sum() / count.clamp(min=1), right, len(losses))


def counting_rows(row: TrainingRow, step: int) -> Tensor:
    """[L] bool: pairs i whose guess of token i + 2 + step is asked for while drafting an answer."""
    length = row.ids.shape[0]
    counts = torch.zeros(length, dtype=torch.bool, device=row.ids.device)
    room = length - 2 - step
    if room <= 0:
        return counts
    inside = torch.ones(room, dtype=torch.bool, device=row.ids.device)
    # Token i + 1 is the first pending token; it and all up to the guessed one belong to one answer.
    for ahead in range(1, 3 + step):
        inside &= row.answer[ahead : ahead + room] & (
            row.document[ahead : ahead + room] == row.document[:room]
        )
    counts[:room] = inside
    return counts


def unrolled_steps(
    head: Head,
    features: Tensor,
    row: TrainingRow,
    target: TargetView,
    recipe: EagleRecipe,
    vocabulary: DraftVocabulary,
) -> list[Step]:
    """EAGLE-3's loss, step by step. features [L, F]: what the head's `fc` reads."""
    rows = counting_rows(row, 0).nonzero()[:, 0]
    if not len(rows):
        return [_nothing(features)]
    first = _See(row.document, rows)
    goals = Goals.of(vocabulary.logits(row.final[rows + 1]), vocabulary.index(row.best[rows + 1]), recipe)
    # What row i shall say at step j is what row i + j shall say at step 0.
    place = torch.zeros_like(row.ids)
    place[rows] = torch.arange(len(rows), device=rows.device)
    states = head.project(features[None])
    embedded = _embed(head, target, row.ids.roll(-1)[None])
    outputs = head(embedded, states, row.positions[None], first.everywhere, rows)
    steps: list[Step] = []
    for number in range(recipe.ttt_length):
        if number:
            going_on = counting_rows(row, number)[rows]
            if number == 1:
                going_on &= drawn(len(rows), recipe.row_share, rows.device)
            kept = going_on.nonzero()[:, 0]
            rows = rows[kept]
            if not len(rows):
                break
            first.narrow(kept)
            embedded = _embed(head, target, row.ids[rows + 1 + number][None])
            outputs = head(embedded, outputs[:, kept], row.positions[rows][None] + number, first.below)
        guess = _logits(head, target, outputs[0])
        num_all = len(row.ids) if number == 0 else recipe.row_share * len(row.ids)
        steps.append(goals.at(place[rows + number]).cross_entropy(guess, recipe, num_all))
    return steps


def regression_step(
    head: Head, features: Tensor, row: TrainingRow, target: TargetView, recipe: EagleRecipe
) -> Step:
    """EAGLE-1/2's loss. features [L, H]: the target's final ones."""
    rows = counting_rows(row, 0).nonzero()[:, 0]
    if not len(rows):
        return _nothing(features)
    see = _See(row.document, rows)
    noisy = features
    if recipe.noise:
        noisy = features + (torch.rand_like(features) - 0.5) * (2 * recipe.noise)
    tokens = row.ids.roll(-1)[None]
    embedded = _embed(head, target, tokens)
    guessed = head(embedded, noisy[None], row.positions[None], see.everywhere, rows)[0]
    wanted = features[rows + 1]
    count = len(rows) if recipe.loss_norm == "mask" else len(row.ids)
    regression = smooth_l1_loss(guessed, wanted, reduction="none").mean(-1).sum() / count
    heard = drawn(len(rows), recipe.row_share, rows.device).nonzero()[:, 0]
    if not len(heard):
        return Step(regression, torch.zeros((), device=rows.device), 0)
    guess = target.lm_head(guessed[heard].to(target.dtype))
    goals = Goals.of(target.lm_head(wanted[heard].to(target.dtype)), row.best[rows[heard] + 1], recipe)
    entropy = goals.cross_entropy(guess, recipe, recipe.row_share * len(row.ids))
    return Step(regression + recipe.ce_weight * entropy.loss, entropy.num_right, entropy.num_rows)


def drawn(count: int, share: float, device: torch.device) -> Tensor:
    """[count] bool: each with probability `share`, by torch's host generator, which a resume restores."""
    chosen = torch.rand(count) < share if share < 1 else torch.ones(count, dtype=torch.bool)
    return chosen.to(device)


class DraftVocabulary:
    """The draft vocabulary of a head, and the target's law over it."""

    @torch.no_grad()
    def __init__(self, head: Head, target: TargetView) -> None:
        shape = head.shape
        self._target = target
        self._place: Tensor | None = None
        if shape.architecture == "eagle3" and shape.draft_vocab_size < shape.vocab_size:
            ids = head.d2t + torch.arange(len(head.d2t), device=head.d2t.device)
            self._place = torch.full((shape.vocab_size,), -1, dtype=torch.int64, device=ids.device)
            self._place[ids] = torch.arange(len(ids), device=ids.device)
            self._rows, self._bias = lm_head_rows(target, ids)

    def index(self, tokens: Tensor) -> Tensor:
        """Draft ids of the target's tokens, -1 of those outside."""
        return tokens if self._place is None else self._place[tokens]

    def logits(self, final: Tensor) -> Tensor:
        """The target's [S, V] after final states [S, H]."""
        if self._place is None:
            return self._target.lm_head(final)
        return torch.nn.functional.linear(final, self._rows, self._bias)


def lm_head_rows(target: TargetView, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Weights [V, H] and bias [V] of the target's LM head for some tokens.

    The LM head is linear: what it makes of nothing is its bias, of the unit vectors its columns.
    """
    size = target.config.hidden_size
    unit = torch.eye(size, device=target.device, dtype=target.dtype)
    bias = target.lm_head(torch.zeros_like(unit[:1]))[0, ids]
    return (target.lm_head(unit)[:, ids] - bias).T.contiguous(), bias


def _nothing(features: Tensor) -> Step:
    """The step of a row in which nothing counts."""
    zero = torch.zeros((), device=features.device)
    return Step(zero.clone().requires_grad_(True), zero, 0)


class _See:
    """Who sees whom in the unrolled attention; remembers keys and values of the steps.

    `everywhere` is the attention of step 0, in which all L rows are seen, `below` that of a later step.
    """

    def __init__(self, document: Tensor, rows: Tensor) -> None:
        length = len(document)
        causal = torch.ones(length, length, dtype=torch.bool, device=document.device).tril()
        self._mask = causal & (document[:, None] == document[None])
        self._rows = rows
        self._first: tuple[Tensor, Tensor] | None = None
        self._later: list[tuple[Tensor, Tensor]] = []

    def everywhere(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """See the class."""
        self._first = key, value
        output = torch.nn.functional.scaled_dot_product_attention(
            query, key, value, attn_mask=self._mask[self._rows], enable_gqa=query.shape[1] != key.shape[1]
        )
        return output.transpose(1, 2)

    def narrow(self, kept: Tensor) -> None:
        """Only these of the rows go on."""
        self._rows = self._rows[kept]
        self._later = [(key[:, :, kept], value[:, :, kept]) for key, value in self._later]

    def below(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """See the class."""
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


def _embed(head: Head, target: TargetView, tokens: Tensor) -> Tensor:
    embedded = (head.embed_tokens or target.embed)(tokens)
    result: Tensor = embedded.to(head.fc.weight.dtype)
    return result


def _logits(head: Head, target: TargetView, states: Tensor) -> Tensor:
    if head.shape.own_lm_head:
        logits: Tensor = head.lm_head(head.normed(states))
        return logits
    return target.lm_head(head.normed(states).to(target.dtype))


@torch.no_grad()
def fresh_head(shape: HeadShape, counts: Tensor, target: TargetView, seed: int) -> Head:
    """A head to be trained, in float32 on the target's device.

    counts [all tokens]: of the answers; the draft vocabulary is made of the most frequent. Its LM head
    starts from the target's rows, scaled down: from the rows as they are, the first steps undo what is there.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        head = Head(shape).to(target.device)
    for name, parameter in head.named_parameters():
        if parameter.ndim > 1 and not name.startswith(("embed_tokens", "lm_head")):
            torch.nn.init.normal_(parameter, std=_INIT_STD)
    ids = torch.arange(shape.draft_vocab_size, device=target.device)
    if shape.architecture == "eagle3" and shape.draft_vocab_size < shape.vocab_size:
        # Of equally frequent tokens the lower id: the order of `topk` is nobody's promise.
        best = counts.to(target.device).sort(descending=True, stable=True).indices[: shape.draft_vocab_size]
        kept = best.sort().values
        head.d2t.copy_(kept - ids)
        ids = kept
    if shape.architecture == "eagle3" and shape.own_lm_head:
        rows = lm_head_rows(target, ids)[0].float()
        if rows.shape == head.lm_head.weight.shape:
            head.lm_head.weight.copy_(_LM_HEAD_SCALE * rows)
    return head


@torch.no_grad()
def feature_scale(features: Tensor) -> Tensor:
    """Root mean square [F] of the features [N, F] by dimension: some are thousands of times larger."""
    return features.float().pow(2).mean(0).sqrt().clamp(min=1e-6)


@torch.no_grad()
def folded(head: Head, scale: Tensor | None) -> Head:
    """A copy of the head that reads features as they are; `head` reads them divided by `scale` [F]."""
    copy: Head = deepcopy(head)
    if scale is not None:
        copy.fc.weight.div_(scale)
    return copy


@torch.no_grad()
def unfolded(head: Head, scale: Tensor | None) -> Head:
    """The inverse of `folded`, in float32: a head that is trained on takes steps as a new one does."""
    copy: Head = deepcopy(head).float()
    if scale is not None:
        copy.fc.weight.mul_(scale)
    return copy
