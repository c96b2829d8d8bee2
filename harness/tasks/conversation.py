"""A conversation: what the user says, turn by turn; the target writes the answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Message:
    """One message of a chat."""

    role: Literal["system", "user", "assistant"]
    content: str


@dataclass(frozen=True, kw_only=True)
class Conversation:
    """One item of a task, with exactly one of `turns` and `input_ids`."""

    id: str
    """Unique within the task."""
    category: str
    turns: tuple[str, ...] = ()
    """The user's messages in order, which the target answers one after the other."""
    input_ids: tuple[int, ...] = ()
    """A prompt that is already token ids and is given to the target without a template."""
    answer: str = ""
    """What the task needs to score an answer; empty: there is nothing. No prompt contains it."""

    def __post_init__(self) -> None:
        assert bool(self.turns) != bool(self.input_ids), f"{self.id}: turns or input_ids, not both"

    @property
    def num_turns(self) -> int:
        """Number of answers that the target writes."""
        return len(self.turns) or 1
