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
    """One item of a task.

    Exactly one of `turns` (user messages, in order; answered one after the other) and `input_ids`
    (a prompt that is already token ids, given to the target as it is, without a template) is set.
    `id` is unique within the task.
    """

    id: str
    category: str
    turns: tuple[str, ...] = ()
    input_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        assert bool(self.turns) != bool(self.input_ids), f"{self.id}: turns or input_ids, not both"

    @property
    def num_turns(self) -> int:
        """How often the target answers."""
        return len(self.turns) or 1
