"""Memory of a drafter beyond one sequence: how long it reaches, and who shares it.

Sequences share a memory only where they may learn from one another: all of them if it lasts for the process,
and those about one question if it lasts for the question. `Drafter.new_call` says where a memory ends.
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


def is_shared(scope: Scope, same_question: bool, num_rows: int) -> bool:
    """Whether the sequences of a call share one memory.

    same_question: whether the call is about the question of the one before. Where it is not, its sequences
    may be about different questions, unless there is only one.
    """
    return scope == "process" or (scope == "question" and (same_question or num_rows == 1))


@configurable
class RememberingDrafter(PerSequenceDrafter):
    """A drafter whose sequences read and write a memory."""

    memory: MemoryScope = "call"
    """How long it remembers: the sequences of one `call` each for itself, all calls about one `question`, or
    everything since the `process` began."""

    def __post_init__(self) -> None:
        self._shared: Any = None
        self._same_question = False
        self._is_shared = is_shared(self.effective_scope, same_question=False, num_rows=1)

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
    def reset(self, num_rows: int) -> None:
        self._is_shared = is_shared(self.effective_scope, self._same_question, num_rows)
        super().reset(num_rows)

    @override
    def start_one(self) -> Any:
        if not self._is_shared:
            return self.start_with(self.new_memory())
        if self._shared is None:
            self._shared = self.new_memory()
        return self.start_with(self._shared)

    @override
    def new_call(self, keep_memory: bool) -> None:
        self._same_question = keep_memory
        if keep_memory:
            for state in getattr(self, "_states", ()):
                self.end_one(state)
        else:
            self._shared = None
        self._states = []

    @override
    def observe(self, outcome: Outcome) -> None:
        if outcome.rows is not None and self._is_shared:
            for row in outcome.rows:
                self.end_one(self._states[row])
            if self.effective_scope == "question" and not self._same_question:
                # The next request of the call is about another question.
                self._shared = None
        super().observe(outcome)

    @override
    def keep(self, rows: Sequence[int]) -> None:
        for row, state in enumerate(self._states if self._is_shared else ()):
            if row not in rows:
                self.end_one(state)
        super().keep(rows)
