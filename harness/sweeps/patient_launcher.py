"""A base launcher that outlives dead jobs: every job of a sweep ends with an outcome.

The launchers of Hydra's own plugins stop at the first job whose process dies. This one continues with the
others and records a failed row for each cell of the dead job, which the same command then measures.
"""

from __future__ import annotations

import importlib
from abc import abstractmethod
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, configure_log, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict
from typing_extensions import override

from harness.cli.job_files import JOB
from harness.cli.outcome import OUTCOME, Collect
from harness.config import ConfigError
from harness.store.locations import RUNS
from harness.store.records import Failure
from harness.store.run_store import ResultStore
from harness.store.write_lock import RunBusy
from harness.sweeps.cell_states import RequestedCell, RunIndex, RunState, requested_cells
from harness.system.console import Console
from harness.system.files import write_json
from harness.system.naming import now

Jobs = dict[int, list[str]]
"""Overrides of each job by its number."""


class PatientLauncher(Launcher):
    """Runs all jobs of a sweep even if some of them die; Ctrl-C ends them all.

    Subclasses run the jobs in `_launch`.
    """

    name = ""
    """Name of the launcher's YAML in conf/hydra/launcher."""
    extra = ""
    """The optional dependency of this package that installs `module`."""
    module = ""
    """Module that the launcher needs."""

    def __init__(self, skip_done: bool, **settings: Any) -> None:
        """skip_done: start no job whose cells are all done. settings: all other settings of the YAML."""
        self._skip_done = skip_done
        self._settings: dict[str, Any] = {
            key: OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
            for key, value in settings.items()
        }

    @override
    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Keep what Hydra passes.

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

    @override
    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run all jobs. Returns nothing, because their results are in the store."""
        setup_globals()
        configure_log(self._config.hydra.hydra_logging, self._config.hydra.verbose)
        self._begun = now()
        self._sweep_dir.mkdir(parents=True, exist_ok=True)
        todo = [list(overrides) for overrides in job_overrides]
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
        """The jobs with a cell to measure, so that the others need not be queued and started.

        first: the number of the first job. The jobs that are left out get the last numbers, and this method
        writes their outcomes.
        """
        index, todo, outcomes, devices = self._run_index(), [], [], set[str]()
        if not index.runs:
            return jobs
        for overrides in jobs:
            cells = requested_cells(_without_hydra(self._compose(first, overrides)), overrides)
            runs = [index.find(cell, self._begun) for cell in cells]
            done = [run for run in runs if run and run.state == "done"]
            if len(done) < len(cells):
                todo.append(overrides)
                continue
            devices |= {str(run.manifest.provenance["device"]["name"]) for run in done}
            folders = [str(run.folder) for run in done]
            outcomes.append({"run_dirs": folders, "errors": [], "status": 0})
        for number, outcome in enumerate(outcomes, first + len(todo)):
            self._write_outcome(number, outcome)
        if devices:
            Console().note(
                f"done already, on {' and '.join(sorted(devices))}: the cells of all but {len(todo)} jobs."
                " Their prompts, weights and heads are assumed to be unchanged; to check that, or to measure"
                " on another device, type hydra.launcher.skip_done=false"
            )
        return todo

    @abstractmethod
    def _launch(self, jobs: Jobs) -> dict[int, str]:
        """Run the jobs to their ends. Returns the known reasons why jobs have no outcome, by number."""

    @property
    def _sweep_dir(self) -> Path:
        return Path(str(self._config.hydra.sweep.dir))

    def _compose(self, number: int, overrides: Sequence[str]) -> DictConfig:
        """The configuration of a job, including Hydra's own."""
        config = self._context.config_loader.load_sweep_config(self._config, list(overrides))
        with open_dict(config):
            config.hydra.job.id = f"{config.hydra.job.name}_{number}"
            config.hydra.job.num = number
        return config

    def _settle(self, jobs: Jobs, reasons: dict[int, str], begun_only: bool = False) -> None:
        """Record a failure for every job without an outcome.

        begun_only: whether the user stopped the sweep, so that a cell that was not started is missing and did
        not fail.
        """
        lost = {num: typed for num, typed in jobs.items() if not (self._folder(num) / OUTCOME).is_file()}
        if not lost:
            return
        index = self._run_index()
        for number, overrides in lost.items():
            kind, reason = "lost", reasons.get(number, "its process ended without an error")
            if begun_only:
                kind, reason = "interrupted", "stopped by the user"
            fault = Failure(kind, "", f"{reason}; the same command resumes from here")
            config = _without_hydra(self._compose(number, overrides))
            cells = [(cell, index.find(cell, self._begun)) for cell in requested_cells(config, overrides)]
            self._write_outcome(number, record_lost_jobs(config, cells, fault, begun_only))

    def _run_index(self) -> RunIndex:
        return RunIndex(Path(self._config.results) / RUNS)

    def _folder(self, number: int) -> Path:
        return self._sweep_dir / str(number)

    def _write_outcome(self, number: int, outcome: dict[str, Any]) -> None:
        # `Collect` finds the jobs of a sweep by these folders, which Hydra makes when it runs a job.
        (self._folder(number) / JOB).mkdir(parents=True, exist_ok=True)
        write_json(self._folder(number) / OUTCOME, outcome)


def _without_hydra(config: DictConfig) -> DictConfig:
    with open_dict(config):
        del config["hydra"]
    return config


def record_lost_jobs(
    config: DictConfig,
    cells: list[tuple[RequestedCell, RunState | None]],
    fault: Failure,
    begun_only: bool,
) -> dict[str, Any]:
    """Record `fault` for every cell of a job that is not done. Returns the outcome of the job.

    cells: each cell of the job and its run, if it has one. begun_only: skip the cells that were not started.
    """
    from harness.benchmark.job import cells_of

    store = ResultStore(Path(config.results) / RUNS)
    folders, errors = [], []
    for (cell, run), names in zip(cells, cells_of(config), strict=True):
        begun = run if run and run.manifest.arms else None
        located = fault._replace(where=f"{cell.target}, {cell.task}, {cell.decoding}")
        if begun is None and begun_only:
            continue
        if begun is None:
            whole: Any = OmegaConf.to_container(config, resolve=False)
            folder = store.write_failed_cell(located, names, config=whole, overrides=cell.overrides)
        else:
            folder = begun.folder
            if begun.state != "done":
                # Since the index was read, the run may have been finished or resumed by another process.
                with suppress(RunBusy), store.open_run(begun.manifest) as journal:
                    if not journal.finished:
                        journal.write_failure(located)
        folders.append(str(folder))
        errors.append(f"{located.where}: {located.message}")
    return {"run_dirs": folders, "errors": errors, "status": 1 if errors else 0}
