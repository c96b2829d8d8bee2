"""The draft vocabulary of a head, and the target's LM head over it.

Shapes: S rows, H hidden size of the target, V draft tokens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from harness.drafting.drafter import TargetView

if TYPE_CHECKING:
    from methods.shared.eagle.heads.base import DraftHead


class DraftVocabulary:
    """The draft vocabulary of a head, and the target's logits over it."""

    @torch.no_grad()
    def __init__(self, head: DraftHead, target: TargetView) -> None:
        shape = head.shape
        self._target = target
        self._place: Tensor | None = None
        if shape.draft_vocab_size < shape.vocab_size:
            ids = head.d2t + torch.arange(len(head.d2t), device=head.d2t.device)
            self._place = torch.full((shape.vocab_size,), -1, dtype=torch.int64, device=ids.device)
            self._place[ids] = torch.arange(len(ids), device=ids.device)
            self._rows, self._bias = lm_head_rows(target, ids)

    def index(self, tokens: Tensor) -> Tensor:
        """Draft ids of the target's token ids, -1 where there is none."""
        return tokens if self._place is None else self._place[tokens]

    def logits(self, final: Tensor) -> Tensor:
        """The target's logits [S, V] after its final states [S, H]."""
        if self._place is None:
            return self._target.lm_head(final)
        return torch.nn.functional.linear(final, self._rows, self._bias)


def lm_head_rows(target: TargetView, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Weights [V, H] and bias [V] of the target's LM head for the tokens `ids` [V].

    The LM head is linear: applied to zero it gives its bias, applied to the unit vectors its columns.
    """
    size = target.config.hidden_size
    unit = torch.eye(size, device=target.device, dtype=target.dtype)
    bias = target.lm_head(torch.zeros_like(unit[:1]))[0, ids]
    return (target.lm_head(unit)[:, ids] - bias).T.contiguous(), bias
