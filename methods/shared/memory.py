"""Memory of a drafter beyond one sequence: how long it reaches, and who shares it.

A drafter of scope `call` gives every sequence a memory of its own. With a wider scope all sequences that run
share one memory, which is kept or dropped where a call begins (`Drafter.new_call`).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, Literal

from typing_extensions import override

from harness.config import configurable
from harness.drafting.drafter import Outcome, Scope
from harness.drafting.sequence_drafter import PerSequenceDrafter

MemoryScope = Literal["call", "question", "process"]
"""The scopes that a drafter with a memory may have; see `harness.drafting.drafter.Scope`."""


@configurable
class RememberingDrafter(PerSequenceDrafter):
    """A drafter whose sequences read and write a memory."""

    memory: MemoryScope = "call"
    """How long it remembers: the sequences of one `call` each for itself, all calls about one `question`, or
    everything since the `process` began."""

    def __post_init__(self) -> None:
        self._shared: Any = None

    @property
    @override
    def scope(self) -> Scope:
        return self.memory

    @abstractmethod
    def new_memory(self) -> Any:
        """A memory of nothing."""

    @abstractmethod
    def start_with(self, memory: Any) -> Any:
        """The state of a new sequence that uses this memory."""

    def end_one(self, state: Any) -> None:
        """A sequence has ended, or another one takes its place."""

    @override
    def start_one(self) -> Any:
        if self.memory == "call":
            return self.start_with(self.new_memory())
        if self._shared is None:
            self._shared = self.new_memory()
        return self.start_with(self._shared)

    @override
    def new_call(self, keep_memory: bool) -> None:
        for state in getattr(self, "_states", ()):
            self.end_one(state)
        self._states = []
        if not keep_memory:
            self._shared = None

    @override
    def observe(self, outcome: Outcome) -> None:
        for row in outcome.rows or ():
            self.end_one(self._states[row])
        super().observe(outcome)

    @override
    def keep(self, rows: Sequence[int]) -> None:
        for row, state in enumerate(self._states):
            if row not in rows:
                self.end_one(state)
        super().keep(rows)
