"""Vanilla: plain autoregression, as the empty draft through the same loop."""

from __future__ import annotations

from collections.abc import Sequence

from harness.config import configurable
from harness.drafting.draft import Draft
from harness.drafting.drafter import Drafter, Outcome


@configurable
class Vanilla(Drafter):
    """Drafts nothing, so that every round emits one token."""

    @property
    def num_drafted(self) -> int:
        """See `Drafter`."""
        return 0

    def reset(self, num_rows: int) -> None:
        """See `Drafter`."""
        self._draft = Draft.empty(num_rows, self._target.device)

    def propose(self, room: Sequence[int]) -> Draft:
        """See `Drafter`."""
        return self._draft

    def observe(self, outcome: Outcome) -> None:
        """Nothing is learnt."""

    def keep(self, rows: Sequence[int]) -> None:
        """See `Drafter`."""
        self._draft = Draft.empty(len(rows), self._target.device)
