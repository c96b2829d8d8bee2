"""Trackers mirror the store into a dashboard. Whatever a dashboard lacks can be sent again from the store."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from typing_extensions import override

from harness.analysis.row import Row
from harness.config import configurable
from harness.store.records import Run
from harness.system.console import Console, cause

Curves = Callable[[Mapping[str, float], int], None]
"""Takes one point of the curves of a training: numbers by name, and the step."""


class Sent(NamedTuple):
    """The arms of a run by whether they had to be sent."""

    now: list[str]
    """Arms that this call sent."""
    already: list[str]
    """Arms that the dashboard had before."""


class Tracker(Protocol):
    """What the benchmark and the training need of a tracker."""

    def require(self) -> None:
        """Raise ConfigError where a package is missing; called before anything is measured."""

    def finish(self, run: Run, rows: Sequence[Row], files: Sequence[Path]) -> None:
        """Mirror a run that has ended. rows: one per method; files: the run's figures. Never raises."""

    def curves(self, name: str, config: Mapping[str, Any]) -> Curves:
        """Begin the curves of a training and return the function that takes their points. Never raises."""
        ...


@configurable
class NoTracker(Tracker):
    """Tracks nothing."""

    @override
    def require(self) -> None:
        pass

    @override
    def finish(self, run: Run, rows: Sequence[Row], files: Sequence[Path]) -> None:
        pass

    @override
    def curves(self, name: str, config: Mapping[str, Any]) -> Curves:
        return drop_point


@configurable
class DashboardTracker(Tracker, ABC):
    """A tracker that sends runs to a dashboard; its failures are warnings and stop nothing."""

    @abstractmethod
    def check(self) -> None:
        """Raise where nothing can be sent at all: a package or a server is missing."""

    @abstractmethod
    def send(self, run: Run, rows: Sequence[Row], files: Sequence[Path]) -> Sent:
        """Send those arms of a finished run that the dashboard lacks. Raises whatever goes wrong."""

    @abstractmethod
    def begin_curves(self, name: str, config: Mapping[str, Any]) -> Curves:
        """Begin the curves of a training as `curves` does, but raise whatever goes wrong."""

    @override
    def require(self) -> None:
        pass

    @override
    def finish(self, run: Run, rows: Sequence[Row], files: Sequence[Path]) -> None:
        # A failure is only a warning, because the run itself is safe in the store.
        try:
            self.check()
            self.send(run, rows, files)
        except Exception as error:
            remedy = "Send it later: python -m harness.report sync. `tracker=none` tracks nothing."
            Console().warn(f"{cause(type(self).__name__, error)} {remedy}")

    @override
    def curves(self, name: str, config: Mapping[str, Any]) -> Curves:
        try:
            return self.begin_curves(name, config)
        except Exception as error:
            Console().warn(f"{cause(type(self).__name__, error)} `tracker=none` tracks nothing.")
            return drop_point


def drop_point(numbers: Mapping[str, float], step: int) -> None:
    """The curves of a training that nothing tracks."""
