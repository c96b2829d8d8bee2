"""Sends the same logs as W&B's to Trackio, a database on the local disk that `trackio show` opens."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from typing_extensions import override

from harness.analysis.row import Row
from harness.config import ConfigError, configurable
from harness.store.records import Run
from harness.system.console import Console
from harness.system.secrets import redact_values
from harness.tracking.run_log import ArmLog, Chart, Page, Picture, Shown, Table, arm_log
from harness.tracking.tracker import Curves, DashboardTracker, Sent

_DIR = "TRACKIO_DIR"


@configurable
class TrackioTracker(DashboardTracker):
    """Trackio, an optional package.

    Every arm is one Trackio run, `<arm> <run id>`, in the group of its cell. Charts are logged as tables.
    """

    project: str = "specbench-harness"
    dir: str = "results/trackio"
    """Folder of the database."""
    log_records: bool = True
    """Whether to log the per-prompt tables and the HTML page of the run too."""

    @override
    def require(self) -> None:
        if find_spec("trackio") is None:
            raise ConfigError(
                "tracker=trackio: the package trackio is not installed; type pip install trackio, or choose"
                " tracker=wandb or tracker=none"
            )

    @override
    def check(self) -> None:
        self.require()

    @override
    def send(self, run: Run, rows: Sequence[Row], files: Sequence[Path]) -> Sent:
        # An arm is complete if its last point is there; one that broke off is resumed.
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

    @override
    def begin_curves(self, name: str, config: Mapping[str, Any]) -> Curves:
        with self._opened() as trackio:
            tracked = self._init(trackio, name=name, group="training", config=dict(config))
        return lambda numbers, step: tracked.log(dict(numbers), step=step)

    def _write(self, trackio: Any, log: ArmLog) -> None:
        """Write one run, from its beginning or from where it broke off."""
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
            raise RuntimeError(f"{self.dir}: {log.name} is incomplete there")

    def _num_points(self, name: str) -> int:
        """Number of points of a run in the database."""
        from trackio.sqlite_storage import SQLiteStorage

        last = SQLiteStorage.get_max_step_for_run(self.project, name)
        return 0 if last is None else last + 1

    def _init(self, trackio: Any, **given: Any) -> Any:
        return trackio.init(
            project=self.project, embed=False, auto_log_gpu=False, auto_log_cpu=False, **redact_values(given)
        )

    @contextmanager
    def _opened(self) -> Iterator[Any]:
        """The package, set to write to `dir` and nothing to stdout. It reads its folder once, at import."""
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
    """Convert to Trackio's own types. It draws no charts from tables, so that charts stay tables."""
    match shown:
        case Table(columns, rows) | Chart(_, _, (columns, rows)):
            return trackio.Table(columns=list(columns), data=rows)
        case Picture(path):
            return trackio.Image(str(path))
        case Page(html):
            return trackio.Html(html)
