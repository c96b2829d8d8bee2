"""Waits: a long operation reports how far it is, and does not know whether anybody shows it.

Like a logger, a wait is reported from anywhere and shown by whoever watches the process (`watched_by`), so
that a loader of weights needs no console. Without a watcher, reports cost nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(eq=False)
class Wait:
    """One long operation under way."""

    what: str
    """What is done, as in "converting the weights"."""
    total: float | None = None
    """Number of steps; None where they cannot be counted."""
    usual_s: float | None = None
    """Seconds that it usually takes, for where steps cannot be counted."""
    timed: bool = False
    """Whether the clock is read meanwhile: then nothing is drawn between two steps."""
    clock: Callable[[], float] = time.monotonic
    done: float = 0.0
    """Steps done so far."""
    now: str = ""
    """What the present step is about."""
    begin: float = field(init=False)

    def __post_init__(self) -> None:
        self.begin = self.clock()

    def step(self, now: str) -> None:
        """Say what the step is about that begins now."""
        self.now = now
        _report(self)

    def advance(self, steps: float = 1.0) -> None:
        """Count steps as done."""
        self.done += steps
        _report(self)

    @property
    def elapsed_s(self) -> float:
        """Seconds since it began."""
        return self.clock() - self.begin

    @property
    def share(self) -> float | None:
        """The share that is done, 0 to 1; None where that is not known."""
        if self.total:
            return min(self.done / self.total, 1.0)
        return min(self.elapsed_s / self.usual_s, 1.0) if self.usual_s else None

    @property
    def left_s(self) -> float | None:
        """Seconds that the rest is expected to take; None where that is not known (any more)."""
        if self.total:
            return self.elapsed_s / self.done * max(self.total - self.done, 0.0) if self.done else None
        left = self.usual_s - self.elapsed_s if self.usual_s else -1.0
        return left if left >= 0 else None

    def message(self) -> str:
        """How far it is, as one line."""
        parts = [self.now] if self.now else []
        if self.total:
            parts.append(f"{self.done:.0f} of {self.total:.0f}")
        parts.append(f"{minutes(self.elapsed_s)} so far")
        if self.left_s is not None:
            parts.append(f"about {minutes(self.left_s)} left")
        elif self.usual_s is not None and not self.total:
            parts.append("longer than usual")
        return ", ".join(parts)


class Watcher(Protocol):
    """Shows waits."""

    def began(self, wait: Wait) -> None:
        """Note that a wait has begun."""

    def advanced(self, wait: Wait) -> None:
        """Note that a step has begun or ended."""

    def ended(self, wait: Wait) -> None:
        """Note that a wait is over."""


_watchers: list[Watcher] = []
"""Who watches this process; the last one shows."""


@contextmanager
def watched_by(watcher: Watcher) -> Iterator[None]:
    """Have `watcher` show all waits within the block."""
    _watchers.append(watcher)
    try:
        yield
    finally:
        _watchers.remove(watcher)


@contextmanager
def waiting(
    what: str, total: float | None = None, usual_s: float | None = None, timed: bool = False
) -> Iterator[Wait]:
    """Report the block as a wait; see the fields of `Wait`."""
    wait = Wait(what, total=total, usual_s=usual_s, timed=timed)
    watcher = _watchers[-1] if _watchers else None
    if watcher:
        watcher.began(wait)
    try:
        yield wait
    finally:
        if watcher:
            watcher.ended(wait)


def minutes(seconds: float) -> str:
    """A time as m:ss."""
    whole = int(seconds)
    return f"{whole // 60}:{whole % 60:02d}"


def _report(wait: Wait) -> None:
    if _watchers:
        _watchers[-1].advanced(wait)
