"""Trackers: reporters that mirror the store into somebody's dashboard. What they lack can be sent again."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from harness.analysis.row import Row
from harness.config import configurable
from harness.store.records import Run
from harness.system.console import Console, cause

Curves = Callable[[Mapping[str, float], int], None]
"""Takes a point of a training's curves: numbers and the step."""


class Sent(NamedTuple):
    """The arms of a run that were sent now, and those that were there already."""

    now: list[str]
    already: list[str]


@configurable
class NoTracker:
    """Tracks nothing."""

    def require(self) -> None:
        """Raise ConfigError where a package is missing; asked before anything is measured."""

    def finish(self, run: Run, rows: Sequence[Row], files: Sequence[Path]) -> None:
        """Mirror a run that ended. rows: one per method; files: its figures. Never raises."""

    def curves(self, name: str, config: Mapping[str, Any]) -> Curves:
        """Begin the curves of a training; what takes their points."""
        return lambda numbers, step: None


@configurable
class Tracker(NoTracker, ABC):
    """What trackers share: what goes wrong is a warning and stops nothing."""

    def check(self) -> None:
        """Raise where nothing can be sent at all: a package or a server is missing."""

    @abstractmethod
    def send(self, run: Run, rows: Sequence[Row], files: Sequence[Path]) -> Sent:
        """Send the arms of a finished run that are not there yet, whoever asks. Raises what goes wrong."""

    @abstractmethod
    def begin_curves(self, name: str, config: Mapping[str, Any]) -> Curves:
        """See `curves`. Raises what goes wrong."""

    def finish(self, run: Run, rows: Sequence[Row], files: Sequence[Path]) -> None:
        """Send the run; a failure is a warning, because the run itself is safe in the store."""
        try:
            self.check()
            self.send(run, rows, files)
        except Exception as error:
            remedy = "Send it later: python -m harness.report sync. `tracker=none` tracks nothing."
            Console().warn(f"{cause(type(self).__name__, error)} {remedy}")

    def curves(self, name: str, config: Mapping[str, Any]) -> Curves:
        """See `NoTracker`."""
        try:
            return self.begin_curves(name, config)
        except Exception as error:
            Console().warn(f"{cause(type(self).__name__, error)} `tracker=none` tracks nothing.")
            return NoTracker.curves(self, name, config)
