"""Trackio: the same logs as W&B's, in a database on this disk; `trackio show` opens it in a browser."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from harness.analysis.row import Row
from harness.config import ConfigError, configurable
from harness.store.records import Run
from harness.system.console import Console
from harness.tracking.run_log import ArmLog, Chart, Page, Picture, Shown, Table, arm_log
from harness.tracking.tracker import Curves, Sent, Tracker

_DIR = "TRACKIO_DIR"


@configurable
class TrackioTracker(Tracker):
    """Trackio, an optional package.

    Every arm is a run `<arm> <run id>`, group the cell. dir: where the database goes. log_records: also
    the per-prompt tables and the page of the run. Charts are logged as their tables.
    """

    project: str = "specbench-harness"
    dir: str = "results/trackio"
    log_records: bool = True

    def require(self) -> None:
        """See `NoTracker`."""
        if find_spec("trackio") is None:
            raise ConfigError(
                "tracker=trackio: the package trackio is not installed; type pip install trackio, or choose"
                " tracker=wandb or tracker=none"
            )

    def check(self) -> None:
        """See `Tracker`."""
        self.require()

    def send(self, run: Run, rows: Sequence[Row], files: Sequence[Path]) -> Sent:
        """See `Tracker`. An arm is there if its last point is; one that broke off is gone on with."""
        now, already = [], []
        with self._opened() as trackio:
            for arm in run.manifest.arms:
                log = arm_log(run, arm, rows, files, self.log_records)
                if self._num_points(log.name) > len(log.history):
                    already.append(arm)
                    continue
                self._write(trackio, log)
                now.append(arm)
        if now:
            Console().note(f"look at it with: {_DIR}={self.dir} trackio show --project {self.project}")
        return Sent(now, already)

    def begin_curves(self, name: str, config: Mapping[str, Any]) -> Curves:
        """See `Tracker`."""
        with self._opened() as trackio:
            tracked = self._init(trackio, name=name, group="training", config=dict(config))
        return lambda numbers, step: tracked.log(dict(numbers), step=step)

    def _write(self, trackio: Any, log: ArmLog) -> None:
        """One run from its beginning or from where it broke off."""
        config = {**log.config, "job_type": log.job_type, "tags": ", ".join(log.tags)}
        begin = self._num_points(log.name)
        tracked = self._init(trackio, name=log.name, group=log.group, config=config, resume="allow")
        for step, values in enumerate(log.history):
            if step >= begin:
                tracked.log(dict(values), step=step)
        media = {key: _converted(trackio, shown) for key, shown in log.shown.items()}
        tracked.log({**log.numbers, **media}, step=len(log.history))
        trackio.finish()
        if self._num_points(log.name) <= len(log.history):
            raise RuntimeError(f"{self.dir}: has not got all of {log.name}")

    def _num_points(self, name: str) -> int:
        """How many points of a run the database has."""
        from trackio.sqlite_storage import SQLiteStorage

        last = SQLiteStorage.get_max_step_for_run(self.project, name)
        return 0 if last is None else last + 1

    def _init(self, trackio: Any, **given: Any) -> Any:
        return trackio.init(
            project=self.project, embed=False, auto_log_gpu=False, auto_log_cpu=False, **given
        )

    @contextmanager
    def _opened(self) -> Iterator[Any]:
        """The package, at our folder, silent on stdout; it reads where to write when it is imported."""
        self.require()
        place = Path(self.dir).resolve()
        if "trackio" not in sys.modules:
            os.environ[_DIR] = str(place)
        import trackio
        from trackio.utils import TRACKIO_DIR

        if Path(TRACKIO_DIR).resolve() != place:
            raise ConfigError(
                f"tracker.dir={self.dir}: this process writes to {TRACKIO_DIR}; it can have one folder"
            )
        with redirect_stdout(sys.stderr):
            yield trackio


def _converted(trackio: Any, shown: Shown) -> Any:
    """In Trackio's own types; it draws no charts of its own from tables."""
    match shown:
        case Table(columns, rows) | Chart(_, _, (columns, rows)):
            return trackio.Table(columns=list(columns), data=rows)
        case Picture(path):
            return trackio.Image(str(path))
        case Page(html):
            return trackio.Html(html)
