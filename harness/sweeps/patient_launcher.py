"""Patience: a launcher that waits for all jobs of a sweep and leaves none without an outcome.

The launchers of Hydra's own plugins stop at the first job whose process dies. This one goes on, and writes
down what happened to the dead: a failed row, which the same command measures when it is typed again.
"""

from __future__ import annotations

import importlib
import json
from abc import abstractmethod
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, configure_log, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict

from harness.cli.outcome import OUTCOME, Collect
from harness.config import ConfigError
from harness.store.records import Failure
from harness.store.run_store import ResultStore
from harness.store.write_lock import RunBusy
from harness.sweeps.cell_states import Asked, Found, Shelf, asked
from harness.system.console import Console
from harness.system.naming import now

Jobs = dict[int, list[str]]
"""Overrides of jobs by their numbers."""


class PatientLauncher(Launcher):
    """Runs all jobs of a sweep, whatever happens to some of them; Ctrl-C ends them all.

    Subclasses say how with `_launch`. name: of the YAML. module: what they need, which `extra` brings.
    """

    name = ""
    extra = ""
    module = ""

    def __init__(self, skip_done: bool, **settings: Any) -> None:
        """skip_done: start no job whose cells are done. settings: the others of conf/hydra/launcher."""
        self._skip_done = skip_done
        self._settings: dict[str, Any] = {
            key: OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
            for key, value in settings.items()
        }

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """See Hydra's `Launcher`.

        Raises:
            ConfigError: the extra is not installed.
        """
        self._context, self._task, self._config = hydra_context, task_function, config
        try:
            importlib.import_module(self.module)
        except ImportError as error:
            raise ConfigError(
                f"hydra/launcher={self.name}: needs {self.module.partition('.')[0]} ({error}). Type"
                f' pip install "specbench-harness[{self.extra}]"'
            ) from error

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run the jobs; what they measured lies in the store, so there is nothing to return."""
        setup_globals()
        configure_log(self._config.hydra.hydra_logging, self._config.hydra.verbose)
        self._begun = now()
        self._sweep_dir.mkdir(parents=True, exist_ok=True)
        todo = [list(given) for given in job_overrides]
        if self._skip_done and not self._config.dry_run:
            todo = self._leave_out(todo, initial_job_idx)
        jobs = dict(enumerate(todo, initial_job_idx))
        try:
            reasons = self._launch(jobs) if jobs else {}
        except KeyboardInterrupt:
            self._settle(jobs, {}, begun_only=True)
            Collect().on_multirun_end(config=self._config)
        self._settle(jobs, reasons)
        return []

    def _leave_out(self, jobs: list[list[str]], first: int) -> list[list[str]]:
        """Those of the jobs that have something to do; the others cost a queue and a start.

        first: their first number. Those that are left out get the last ones.
        """
        shelf, todo, outcomes, devices = self._shelf(), [], [], set[str]()
        if not shelf.found:
            return jobs
        for overrides in jobs:
            cells = asked(_without_hydra(self._compose(first, overrides)), overrides)
            found = [shelf.find(cell, self._begun) for cell in cells]
            done = [one for one in found if one and one.state == "done"]
            if len(done) < len(cells):
                todo.append(overrides)
                continue
            devices |= {str(one.manifest.provenance["device"]["name"]) for one in done}
            folders = [str(one.folder) for one in done]
            outcomes.append({"run_dirs": folders, "errors": [], "status": 0})
        for number, outcome in enumerate(outcomes, first + len(todo)):
            self._write_outcome(number, outcome)
        if devices:
            Console().note(
                f"done already, on {' and '.join(sorted(devices))}: the cells of all but {len(todo)} jobs."
                " That prompts, weights and heads hold what they held is taken on trust; to have each looked"
                " at, or measured on another device: hydra.launcher.skip_done=false"
            )
        return todo

    @abstractmethod
    def _launch(self, jobs: Jobs) -> dict[int, str]:
        """Run the jobs to their ends; why some have no outcome, as far as it is known."""

    @property
    def _sweep_dir(self) -> Path:
        return Path(str(self._config.hydra.sweep.dir))

    def _compose(self, number: int, overrides: Sequence[str]) -> DictConfig:
        """The configuration of a job, Hydra's own included."""
        config = self._context.config_loader.load_sweep_config(self._config, list(overrides))
        with open_dict(config):
            config.hydra.job.id = f"{config.hydra.job.name}_{number}"
            config.hydra.job.num = number
        return config

    def _settle(self, jobs: Jobs, reasons: dict[int, str], begun_only: bool = False) -> None:
        """Write down what happened to the jobs without an outcome.

        begun_only: the user stopped the sweep; a cell that was not begun is missing, not failed.
        """
        lost = {num: given for num, given in jobs.items() if not (self._folder(num) / OUTCOME).is_file()}
        if not lost:
            return
        shelf = self._shelf()
        for number, overrides in lost.items():
            kind, reason = "lost", reasons.get(number, "its process ended without a word")
            if begun_only:
                kind, reason = "interrupted", "stopped by the user"
            fault = Failure(kind, "", f"{reason}; the same command goes on from here")
            config = _without_hydra(self._compose(number, overrides))
            cells = [(cell, shelf.find(cell, self._begun)) for cell in asked(config, overrides)]
            self._write_outcome(number, _bury(config, cells, fault, begun_only))

    def _shelf(self) -> Shelf:
        return Shelf(Path(self._config.results) / "runs")

    def _folder(self, number: int) -> Path:
        return self._sweep_dir / str(number)

    def _write_outcome(self, number: int, outcome: dict[str, Any]) -> None:
        # The aggregate knows a job by its folder of Hydra's.
        (self._folder(number) / ".hydra").mkdir(parents=True, exist_ok=True)
        (self._folder(number) / OUTCOME).write_text(json.dumps(outcome))


def _without_hydra(config: DictConfig) -> DictConfig:
    with open_dict(config):
        del config["hydra"]
    return config


def _bury(
    config: DictConfig, cells: list[tuple[Asked, Found | None]], fault: Failure, begun_only: bool
) -> dict[str, Any]:
    """Make a failed row of every cell of a job that is not done; the job's outcome."""
    from harness.benchmark.job import cells_of

    store = ResultStore(Path(config.results) / "runs")
    folders, errors = [], []
    for (cell, found), names in zip(cells, cells_of(config), strict=True):
        begun = found if found and found.manifest.arms else None
        told = fault._replace(where=f"{cell.target}, {cell.task}, {cell.decoding}")
        if begun is None and begun_only:
            continue
        if begun is None:
            whole: Any = OmegaConf.to_container(config, resolve=False)
            folder = store.write_failed_cell(told, names, config=whole, overrides=cell.overrides)
        else:
            folder = begun.folder
            if begun.state != "done":
                # It may have been finished since it was looked at, or go on.
                with suppress(RunBusy), store.open_run(begun.manifest) as run:
                    if not run.finished:
                        run.write_failure(told)
        folders.append(str(folder))
        errors.append(f"{told.where}: {told.message}")
    return {"run_dirs": folders, "errors": errors, "status": 1 if errors else 0}
