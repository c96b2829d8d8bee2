"""Training rows of several documents: attention within each, and what guesses are compared with.

Shapes: L tokens of a packed row, K guesses of a row, R rows with a loss, H hidden size, V draft vocabulary.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from harness.drafting.trainable import TrainingRow
from methods.shared.draft_vocabulary import DraftVocabulary
from methods.shared.soft_targets import soft_cross_entropy


def spans_of(document: Tensor) -> list[slice]:
    """Where each document of a row [L] begins and ends."""
    ends = (document[1:] != document[:-1]).nonzero()[:, 0] + 1
    cuts = [0, *ends.tolist(), len(document)]
    return [slice(begin, end) for begin, end in itertools.pairwise(cuts)]


def attended(spans: Sequence[slice], slots: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention [1, L * slots, A, D] within each document; every slot sees all before it and itself."""
    pieces = []
    for span in spans:
        here = slice(span.start * slots, span.stop * slots)
        pieces.append(
            scaled_dot_product_attention(
                query[:, :, here],
                key[:, :, here],
                value[:, :, here],
                is_causal=True,
                enable_gqa=query.shape[1] != key.shape[1],
            )
        )
    return torch.cat(pieces, dim=2).transpose(1, 2)


@dataclass(frozen=True)
class Goals:
    """What the guesses of rows are compared with. Goal j is about the token after token j + 1."""

    probs: Tensor
    """[J, V] float32: the target's distribution over the draft vocabulary."""
    place: Tensor
    """[L] int64: the index in `probs` of every goal, -1 where there is none."""
    counts: Tensor
    """[L] bool: goals that enter the loss."""
    group: Tensor
    """[L] int64: a guess of row i has goal j only if both are of one group."""

    @classmethod
    @torch.no_grad()
    def of(cls, row: TrainingRow, begins: Tensor, vocabulary: DraftVocabulary) -> Goals:
        """The target's distribution after every token that a guess may follow.

        Goals whose likeliest token cannot be drafted do not count.

        begins [L] bool: rows that draft.
        """
        places = begins.nonzero()[:, 0]
        place = torch.full_like(row.ids, -1)
        place[places] = torch.arange(len(places), device=place.device)
        counts = torch.zeros_like(begins)
        counts[places] = vocabulary.index(row.best[places + 1].clamp(min=0)) >= 0
        # Goals of one group are about tokens of one answer, without a gap.
        group = (~begins).cumsum(0) * 2 + begins
        return cls(vocabulary.logits(row.final[places + 1]).float().softmax(-1), place, counts, group)

    def find(self, rows: Tensor, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """For goals `rows + step` [R]: their index in `probs`, whether there is one, and whether it
        counts."""
        wanted = (rows + step).clamp(max=len(self.place) - 1)
        found = self.place[wanted]
        known = (rows + step < len(self.place)) & (self.group[wanted] == self.group[rows]) & (found >= 0)
        return found.clamp(min=0), known, known & self.counts[wanted]


def cross_entropy(logits: Tensor, probs: Tensor) -> Tensor:
    """The mean of the cross entropies of rows [n, V]; 0 where there are none."""
    losses, _ = soft_cross_entropy(logits, probs, torch.arange(len(logits), device=logits.device))
    return losses.sum() / max(len(losses), 1)
