"""What goes wrong with an engine outside this process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

FaultKind = Literal[
    "engine-died",
    "engine-slow-start",
    "engine-silent",
    "engine-refused",
    "engine-error",
    "engine-garbage",
    "engine-cut-off",
]
"""The process ended; it was not ready in time; it said nothing for too long; it cannot be reached, or has no
such model; it answered with an error; it answered with what is no answer; it ended a stream too early."""


class EngineFault(Exception):
    """An engine did not answer as it should. What was measured together is not kept; all else is.

    The same command measures the rest, because such a fault says nothing about the method.
    """

    def __init__(self, kind: FaultKind, text: str, fatal: bool = False) -> None:
        """fatal: whether no later request could be answered either, so that the run ends."""
        super().__init__(text)
        self.kind: FaultKind = kind
        self.fatal = fatal


def incomplete(lost: Sequence[str], num_blocks: int) -> EngineFault:
    """The end of a run that could not measure the blocks `lost`, which it has recorded one by one."""
    return EngineFault(
        "engine-error",
        f"{len(lost)} of {num_blocks} blocks could not be measured ({lost[0]} first); the same command"
        " measures them",
        fatal=True,
    )
