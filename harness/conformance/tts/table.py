"""TableDrafter: a drafter that is a table of logits, so that every update can be computed by hand.

Shapes: B sequences, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from pydantic import Field
from torch import Tensor
from typing_extensions import override

from harness.config import configurable
from harness.drafting.draft import Draft
from harness.drafting.drafter import Outcome, TargetView
from harness.drafting.online import OnlineDrafter


class Table(torch.nn.Module):
    """Logits [V, V] of the next token, by the token before it."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = torch.nn.Parameter(logits)


@configurable
class TableDrafter(OnlineDrafter):
    """Drafts a chain, each token by the row of the one before it, in float64."""

    theta: Any
    """Lists [V][V]: the logits to begin with."""
    draft_length: int = Field(default=4, ge=1)
    draws: bool = False
    """Whether tokens are drawn and their distributions stated; if not, the likeliest, of equal ones the
    smaller id."""

    @override
    def bind(self, target: TargetView) -> None:
        super().bind(target)
        self.logits = torch.tensor(self.theta, dtype=torch.float64)
        self._pending: list[int] = []

    @override
    def begin_learning(self) -> torch.nn.Module:
        self._learned = Table(self.logits.clone())
        return self._learned

    @override
    def output_parameters(self) -> Sequence[torch.nn.Parameter]:
        return []

    @override
    def recall(self, draft: Draft, rows: Tensor) -> Callable[[], Tensor]:
        known = torch.cat([torch.tensor(self._pending), draft.tokens[0]])
        return lambda: self._learned.logits[known[rows]]

    @override
    def publish(self) -> None:
        self.logits = self._learned.logits.detach().clone()

    @override
    def reset(self, num_rows: int) -> None:
        self._pending = [0] * num_rows
        self._noise = torch.Generator().manual_seed(0)

    @override
    def propose(self, room: Sequence[int]) -> Draft:
        last = torch.tensor(self._pending)
        tokens, probs = [], []
        for _ in range(self.draft_length):
            rows = self.logits[last]
            probs.append(rows.softmax(-1))
            if self.draws:
                last = torch.multinomial(probs[-1], 1, generator=self._noise)[:, 0]
            else:
                # A stable sort, because `argmax` promises no order of equal ones.
                last = rows.sort(dim=-1, descending=True, stable=True).indices[:, 0]
            tokens.append(last)
        size = torch.full_like(last, self.draft_length)
        chain = Draft.chain(torch.stack(tokens, dim=1), size)
        return Draft(
            tokens=chain.tokens,
            parents=chain.parents,
            size=size,
            is_chain=True,
            probs=torch.stack(probs, dim=1) if self.draws else None,
        )

    @override
    def observe(self, outcome: Outcome) -> None:
        rows = range(len(outcome.pending)) if outcome.rows is None else outcome.rows
        for row, token in zip(rows, outcome.pending, strict=True):
            self._pending[row] = token

    @override
    def keep(self, rows: Sequence[int]) -> None:
        self._pending = [self._pending[row] for row in rows]
