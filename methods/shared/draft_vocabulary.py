"""The draft vocabulary of a head, and the target's LM head over it.

Shapes: H hidden size of the target, V draft tokens.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from harness.drafting.drafter import TargetView

_COLUMNS = 256
"""Unit vectors that a target's LM head reads at a time."""


class HasVocabulary(Protocol):
    """A network that drafts some of the target's tokens."""

    d2t: Tensor
    """[V] int64: target id minus draft id."""

    @property
    def shape(self) -> Any:
        """Has `draft_vocab_size` and `vocab_size`, the target's."""


class DraftVocabulary:
    """The draft vocabulary of a head, and the target's logits over it."""

    @torch.no_grad()
    def __init__(self, head: HasVocabulary, target: TargetView) -> None:
        shape = head.shape
        self._target = target
        self._place: Tensor | None = None
        if shape.draft_vocab_size < shape.vocab_size:
            ids = head.d2t + torch.arange(len(head.d2t), device=head.d2t.device)
            self._place = torch.full((shape.vocab_size,), -1, dtype=torch.int64, device=ids.device)
            self._place[ids] = torch.arange(len(ids), device=ids.device)
            self._lm_head = torch.nn.Sequential(linear_of(*lm_head_rows(target, ids)))

    def prepare(self) -> None:
        """Multiply as the target does from now on, which is faster for the few rows of a draft."""
        if self._place is not None:
            self._target.prepare(self._lm_head)

    @property
    def modules(self) -> list[torch.nn.Module]:
        """What multiplies, where it is not the target's own LM head."""
        return [] if self._place is None else [self._lm_head]

    def index(self, tokens: Tensor) -> Tensor:
        """Draft ids of the target's token ids, -1 where there is none."""
        return tokens if self._place is None else self._place[tokens]

    def logits(self, states: Tensor) -> Tensor:
        """What the target's LM head says [..., V] of normed states [..., H], its own or a head's."""
        states = states.to(self._target.dtype)
        if self._place is None:
            return self._target.lm_head(states)
        logits: Tensor = self._lm_head(states)
        return logits


def lm_head_rows(target: TargetView, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Weights [V, H] and bias [V] of the target's LM head for the tokens `ids` [V].

    The LM head is linear: applied to zero it gives its bias, applied to the unit vectors its columns.
    """
    size = target.config.hidden_size
    unit = torch.eye(size, device=target.device, dtype=target.dtype)
    bias = target.lm_head(torch.zeros_like(unit[:1]))[0, ids]
    # Some columns at a time: all of them over the target's whole vocabulary are as large as the LM head.
    columns = torch.cat([target.lm_head(some)[:, ids] for some in torch.split(unit, _COLUMNS)])
    return (columns - bias).T.contiguous(), bias


def linear_of(rows: Tensor, bias: Tensor) -> torch.nn.Linear:
    """A layer with the weights `rows` [V, H] and the bias [V], if it has any, which are not trained."""
    layer = torch.nn.Linear(rows.shape[1], len(rows), bias=bool(bias.any()), device="meta")
    layer.weight = torch.nn.Parameter(rows, requires_grad=False)
    if layer.bias is not None:
        layer.bias = torch.nn.Parameter(bias, requires_grad=False)
    return layer


def map_of_most_frequent(counts: Tensor, size: int) -> Tensor:
    """`d2t` [V] of the V = `size` most frequent tokens of counts [target's vocabulary]."""
    # A stable sort prefers the lower id of equally frequent tokens; `topk` promises no order.
    kept = counts.sort(descending=True, stable=True).indices[:size].sort().values
    return kept - torch.arange(size, device=counts.device)
