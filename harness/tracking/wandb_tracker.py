"""Sends each arm of a stored run to W&B as one run: offline by default, as a trial under `wandb agent`."""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal, NamedTuple

from typing_extensions import override

from harness.analysis.row import Row
from harness.config import ConfigError, configurable
from harness.store.records import BASELINE, Run
from harness.store.run_store import MANIFEST, RECORDS
from harness.system.console import Console
from harness.system.progress import waiting
from harness.system.secrets import redact_values
from harness.tracking.run_log import (
    ArmLog,
    Chart,
    Page,
    Picture,
    Shown,
    Table,
    arm_log,
    clean,
    group_of,
    log_id,
    log_name,
)
from harness.tracking.tracker import Curves, DashboardTracker, Sent, drop_point

WHOLE = "whole"
"""Name of the file that marks the folder of an offline run as complete."""
_OF_A_SWEEP = ("WANDB_SWEEP_ID", "WANDB_RUN_ID", "WANDB_SWEEP_PARAM_PATH")
_LOOKS_S = (0.0, 1.0, 3.0)
"""Seconds to wait before each query of whether the server has everything that was sent."""


class Trial(NamedTuple):
    """The trial of a sweep that `wandb agent` started this process for."""

    sweep: str
    id: str
    """Id of the W&B run that the agent expects."""
    project: str | None
    entity: str | None
    parameters: dict[str, Any]


class Found(NamedTuple):
    """A run that is already in W&B."""

    id: str
    name: str
    whole: bool
    """Whether the run ended well, so that all of it is there."""


@configurable
class WandbTracker(DashboardTracker):
    """Weights & Biases.

    Every arm is one W&B run, `<run id>-<arm>`, with the arm as its job type and its cell as its group.
    """

    project: str = "specbench-harness"
    entity: str | None = None
    mode: Literal["offline", "online", "disabled"] = "offline"
    """`offline` writes files for a later `wandb sync`, `online` uploads at once, `disabled` does nothing."""
    dir: str = "results/wandb"
    """Folder of the files."""
    tags: tuple[str, ...] = ()
    log_records: bool = True
    """Whether to log the per-prompt tables, the HTML page, and an artifact of records and manifest too."""
    timeout_s: float = 300.0
    """Time limit of one upload, in seconds."""

    @override
    def check(self) -> None:
        if self.mode == "online":
            _server().default_entity  # noqa: B018 - asking is the test

    @override
    def send(self, run: Run, rows: Sequence[Row], files: Sequence[Path]) -> Sent:
        # An arm is complete if its folder is marked as whole (offline) or the server says that its run
        # finished (online). An arm that broke off is resumed.
        arms = list(run.manifest.arms)
        if self.mode == "disabled":
            return Sent([], [])
        trial = asked_trial()
        tuned = _tuned(run, self.mode) if trial else None
        found = self._found(run, trial)
        ids = {arm: trial.id if trial and arm == tuned else _id_of(run, arm, found) for arm in arms}
        missing = [arm for arm in arms if not (ids[arm] in found and found[ids[arm]].whole)]
        if trial and tuned not in missing and found[trial.id].name != log_name(run, str(tuned)):
            raise ConfigError(
                f"trial {trial.id} of sweep {trial.sweep} has its numbers from another run:"
                " a trial measures one decoding; type decoding=[greedy]"
            )
        folders = []
        with waiting("writing the runs of W&B", total=len(missing)) as wait:
            for arm in missing:
                wait.step(arm)
                log = arm_log(run, arm, rows, files, self.log_records)
                folders.append(self._write(log, Path(run.folder), ids[arm], trial if arm == tuned else None))
                wait.advance()
        if self.mode == "offline" and folders:
            Console().note(f"upload with: wandb sync {_shortest(folders, clean(run.manifest.run_id))}")
        if self.mode == "online" and missing:
            self._confirm(run, trial, [ids[arm] for arm in missing])
        return Sent(missing, [arm for arm in arms if arm not in missing])

    @override
    def begin_curves(self, name: str, config: Mapping[str, Any]) -> Curves:
        if self.mode == "disabled":
            return drop_point
        tracked = self._open(None, name=name, job_type="training", tags=list(self.tags), config=dict(config))
        return lambda numbers, step: tracked.log(dict(numbers), step=step)

    def _found(self, run: Run, trial: Trial | None) -> dict[str, Found]:
        """W&B's runs of this run's cell, by id."""
        if self.mode == "offline":
            folders = Path(self.dir).glob("wandb/offline-run-*")
            names = {log_id(run, arm): log_name(run, arm) for arm in run.manifest.arms}
            whole = {folder.name.split("-", 3)[-1] for folder in folders if (folder / WHOLE).is_file()}
            return {id_: Found(id_, name, True) for id_, name in names.items() if id_ in whole}
        server = _server()
        place = f"{self._entity(trial) or server.default_entity}/{self._project(trial)}"
        wanted = [{"group": group_of(run.manifest.cell)}, *([{"name": trial.id}] if trial else [])]
        runs = server.runs(place, filters={"$or": wanted}, per_page=200)
        try:
            return {one.id: Found(one.id, one.name, one.state == "finished") for one in runs}
        except ValueError:
            # There is no such project: the first run makes it.
            return {}

    def _confirm(self, run: Run, trial: Trial | None, ids: Sequence[str]) -> None:
        """Raise RuntimeError unless the server has these runs completely."""
        missing: list[str] = list(ids)
        for pause in _LOOKS_S:
            time.sleep(pause)
            found = self._found(run, trial)
            missing = [id_ for id_ in ids if not (id_ in found and found[id_].whole)]
            if not missing:
                return
        raise RuntimeError(f"the server lacks parts of {', '.join(missing)}")

    def _write(self, log: ArmLog, folder: Path, id_: str, trial: Trial | None) -> str:
        """One W&B run from its beginning or from where it broke off; the folder of its files."""
        import wandb

        tracked = self._open(
            trial,
            id=id_,
            name=log.name,
            group=log.group,
            job_type=log.job_type,
            tags=[*log.tags, *self.tags],
            config={**log.config, **(trial.parameters if trial else {})},
            resume="allow" if self.mode == "online" else None,
        )
        try:
            self._log(wandb, tracked, log, folder)
        except BaseException:
            # Not left to a `with` block, which would print a traceback.
            tracked.finish(exit_code=1)
            raise
        tracked.finish()
        written = Path(tracked.settings.sync_dir)
        if self.mode == "offline":
            (written / WHOLE).touch()
        return str(written)

    def _log(self, wandb: Any, tracked: Any, log: ArmLog, folder: Path) -> None:
        """Log the part of `log` that the run lacks."""
        tracked.define_metric("prompt/number", hidden=True, summary="none")
        tracked.define_metric("prompt/*", step_metric="prompt/number", summary="none")
        for step, values in enumerate(log.history):
            if step >= tracked.starting_step:
                tracked.log(values, step=step)
        if self.log_records and log.leads:
            artifact = tracked.log_artifact(_records(wandb, folder))
            if self.mode == "online":
                artifact.wait(timeout=int(self.timeout_s))
        media = {key: _converted(wandb, shown) for key, shown in log.shown.items()}
        # The numbers go into the history, because W&B draws no panels of a mere summary by itself.
        tracked.log({**log.numbers, **media}, step=max(len(log.history), tracked.starting_step))

    def _open(self, trial: Trial | None, **given: Any) -> Any:
        """Open a new W&B run, as part of the sweep only if `trial` is given."""
        import wandb

        Path(self.dir).mkdir(parents=True, exist_ok=True)
        asked = asked_trial()
        with _apart_from_sweep():
            return wandb.init(
                project=self._project(asked),
                entity=self._entity(asked),
                mode=self.mode,
                dir=self.dir,
                reinit="create_new",
                settings=_quiet(wandb, self.timeout_s, trial.sweep if trial else None),
                **redact_values(given),
            )

    def _project(self, trial: Trial | None) -> str:
        return (trial.project if trial else None) or self.project

    def _entity(self, trial: Trial | None) -> str | None:
        return (trial.entity if trial else None) or self.entity


def asked_trial() -> Trial | None:
    """The trial that the environment describes; None where no agent started this process."""
    sweep, id_ = os.environ.get("WANDB_SWEEP_ID"), os.environ.get("WANDB_RUN_ID")
    if not sweep or not id_:
        return None
    from wandb.sdk.lib.config_util import dict_from_config_file

    path = os.environ.get("WANDB_SWEEP_PARAM_PATH")
    parameters = dict_from_config_file(path) if path else None
    place = os.environ.get("WANDB_PROJECT"), os.environ.get("WANDB_ENTITY")
    return Trial(sweep, id_, *place, parameters or {})


@contextmanager
def _apart_from_sweep() -> Iterator[None]:
    """Hide the sweep from W&B, which would make every run that it opens the trial's, whatever its id."""
    kept = {name: os.environ.pop(name) for name in _OF_A_SWEEP if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(kept)


def _shortest(folders: Sequence[str], run_id: str) -> str:
    """Arguments for a shell that name `folders`: one pattern where it fits them all, else each of them."""
    pattern = f"*-{run_id}-*"
    parents = {Path(folder).parent for folder in folders}
    if len(parents) == 1 and all(fnmatchcase(Path(folder).name, pattern) for folder in folders):
        return f"{shlex.quote(str(parents.pop()))}/{pattern}"
    return shlex.join(folders)


def _tuned(run: Run, mode: str) -> str:
    """The arm whose numbers the sweep optimises.

    Raises:
        ConfigError: the run is not sent online, or it does not have exactly one method beside vanilla.
    """
    if mode != "online":
        raise ConfigError(f"tracker.mode={mode}: a sweep needs its numbers; type tracker.mode=online")
    methods = [arm for arm in run.manifest.arms if arm != BASELINE]
    if len(methods) != 1:
        given = ", ".join(methods) or f"only {BASELINE}"
        raise ConfigError(f"a sweep tunes one method, not {given}; type method=[NAME]")
    return methods[0]


def _id_of(run: Run, arm: str, found: Mapping[str, Found]) -> str:
    """The arm's own id, unless a trial's run already holds all its numbers."""
    own, name = log_id(run, arm), log_name(run, arm)
    return next((one.id for one in found.values() if one.name == name and one.whole), own)


def _records(wandb: Any, folder: Path) -> Any:
    artifact = wandb.Artifact(clean(folder.name), type="results")
    for name in (MANIFEST, RECORDS):
        # The store's files do not change after the end, so W&B need not copy them aside.
        artifact.add_file(str(folder / name), policy="immutable")
    return artifact


def _converted(wandb: Any, shown: Shown) -> Any:
    """Convert to W&B's own types."""
    match shown:
        case Table(columns, rows):
            return wandb.Table(columns=list(columns), data=rows)
        case Chart(kind, title, (columns, rows)):
            table = wandb.Table(columns=list(columns), data=rows)
            if kind == "bar":
                return wandb.plot.bar(table, *columns, title=title)
            return wandb.plot.line(table, *columns, title=title)
        case Picture(path):
            return wandb.Image(str(path))
        case Page(html):
            # W&B must not add its style sheet: the page blocks content from elsewhere.
            return wandb.Html(html, inject=False, data_is_not_path=True)


def _server() -> Any:
    """A new client of W&B's public API. A client caches answers, so that every query needs a new one."""
    import wandb

    with _apart_from_sweep():
        return wandb.Api(timeout=30)


def _quiet(wandb: Any, timeout_s: float, sweep: str | None) -> Any:
    """Settings under which W&B prints nothing and collects nothing about this machine and its user."""
    return wandb.Settings(
        silent=True,
        console="off",
        disable_git=True,
        save_code=False,
        host="",
        x_disable_meta=True,
        x_disable_machine_info=True,
        x_disable_stats=True,
        x_save_requirements=False,
        init_timeout=min(timeout_s, 90.0),
        finish_timeout=timeout_s,
        finish_timeout_raises=True,
        sweep_id=sweep,
    )
