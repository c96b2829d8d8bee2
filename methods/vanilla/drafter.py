"""Vanilla: plain autoregression, as the empty draft through the same loop."""

from __future__ import annotations

from collections.abc import Sequence

from typing_extensions import override

from harness.config import configurable
from harness.drafting.draft import Draft
from harness.drafting.drafter import Drafter, Outcome


@configurable
class Vanilla(Drafter):
    """Drafts nothing, so that every round emits one token."""

    @property
    @override
    def num_drafted(self) -> int:
        return 0

    @override
    def reset(self, num_rows: int) -> None:
        self._draft = Draft.empty(num_rows, self._target.device)

    @override
    def propose(self, room: Sequence[int]) -> Draft:
        return self._draft

    @override
    def observe(self, outcome: Outcome) -> None:
        """Do nothing: there is nothing to learn."""

    @override
    def keep(self, rows: Sequence[int]) -> None:
        self._draft = Draft.empty(len(rows), self._target.device)
