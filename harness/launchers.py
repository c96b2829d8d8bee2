"""Launchers: hand a sweep's jobs to Slurm, Ray or joblib, and leave no job without an outcome.

The launchers of Hydra's own plugins stop at the first job whose process dies. These wait for all others, and
write down what happened to the dead: a failed row, which the same command measures when it is typed again.
"""

from __future__ import annotations

import importlib
import json
import os
import re
from abc import abstractmethod
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus, configure_log, run_job, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict

from harness.cli import OUTCOME, Collect
from harness.config import ConfigError
from harness.lease import RunBusy
from harness.progress import Shelf, asked
from harness.records import Failure
from harness.store import ResultStore

Jobs = dict[int, list[str]]
"""Overrides of jobs by their numbers."""


class PatientLauncher(Launcher):
    """Runs all jobs of a sweep, whatever happens to some of them; Ctrl-C ends them all.

    Subclasses say how with `_launch`, and name the extra of this package that brings what they need.
    """

    extra = ""
    module = ""

    def __init__(self, **settings: Any) -> None:
        """settings: of the YAML in conf/hydra/launcher."""
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
                f"hydra/launcher={self.extra}: needs {self.module.partition('.')[0]} ({error}). Type"
                f' pip install "specbench-harness[{self.extra}]"'
            ) from error

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run the jobs; what they measured lies in the store, so there is nothing to return."""
        setup_globals()
        configure_log(self._config.hydra.hydra_logging, self._config.hydra.verbose)
        jobs = {initial_job_idx + place: list(given) for place, given in enumerate(job_overrides)}
        self._sweep_dir.mkdir(parents=True, exist_ok=True)
        try:
            reasons = self._launch(jobs)
        except KeyboardInterrupt:
            self._settle(jobs, {}, begun_only=True)
            Collect().on_multirun_end(config=self._config)
        self._settle(jobs, reasons)
        return []

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
        shelf = Shelf(Path(self._config.results) / "runs") if lost else None
        for number, overrides in lost.items():
            assert shelf is not None
            kind, reason = "lost", reasons.get(number, "its process ended without a word")
            if begun_only:
                kind, reason = "interrupted", "stopped by the user"
            fault = Failure(kind, "", f"{reason}; the same command goes on from here")
            outcome = _bury(self._compose(number, overrides), fault, shelf, begun_only)
            # The aggregate knows a job by its folder of Hydra's.
            (self._folder(number) / ".hydra").mkdir(parents=True, exist_ok=True)
            (self._folder(number) / OUTCOME).write_text(json.dumps(outcome))

    def _folder(self, number: int) -> Path:
        return self._sweep_dir / str(number)


def _bury(config: DictConfig, fault: Failure, shelf: Shelf, begun_only: bool) -> dict[str, Any]:
    """Make a failed row of every cell of a job that is not done; the job's outcome."""
    from harness.job import cells_of  # takes seconds to import

    store = ResultStore(Path(config.results) / "runs")
    folders, errors = [], []
    overrides = list(config.hydra.overrides.task)
    with open_dict(config):
        del config["hydra"]
    for cell, names in zip(asked(config, overrides), cells_of(config), strict=True):
        found = shelf.find(cell)
        begun = found if found and found.manifest.arms else None
        told = fault._replace(where=f"{cell.target}, {cell.task}, {cell.decoding}")
        if begun is None and begun_only:
            continue
        if begun is None:
            whole: Any = OmegaConf.to_container(config, resolve=False)
            folder = store.write_failed_cell(told, names, config=whole, overrides=overrides)
        else:
            folder = begun.folder
            if begun.state != "done":
                with suppress(RunBusy), store.open_run(begun.manifest) as run:
                    run.write_failure(told)
        folders.append(str(folder))
        errors.append(f"{told.where}: {told.message}")
    return {"run_dirs": folders, "errors": errors, "status": 1 if errors else 0}


def _faults(jobs: Jobs, returned: Sequence[JobReturn]) -> dict[int, str]:
    """What jobs raised that ended otherwise in good order."""
    return {
        number: f"{type(fault).__name__}: {_short(fault)}"
        for number, one in zip(jobs, returned, strict=True)
        if one.status == JobStatus.FAILED
        for fault in [one._return_value]
    }


class Slurm(PatientLauncher):
    """A Slurm job a cell, as an array, through hydra-submitit-launcher."""

    extra = "slurm"
    module = "hydra_plugins.hydra_submitit_launcher.submitit_launcher"

    def _launch(self, jobs: Jobs) -> dict[int, str]:
        import submitit
        from hydra_plugins.hydra_submitit_launcher.submitit_launcher import SlurmLauncher
        from submitit.core.utils import FailedJobError, UncompletedJobError

        inner = SlurmLauncher(**self._settings)
        inner.setup(hydra_context=self._context, task_function=self._task, config=self._config)
        root = Path(self._settings["submitit_folder"]).parent
        earlier = set(root.glob("*"))

        def submitted() -> list[Any]:
            """Those of this launch, in the order of their numbers."""
            names = [path.name for path in set(root.glob("*")) - earlier if path.name[0].isdigit()]
            ordered = sorted(names, key=lambda name: [int(part) for part in name.split("_")])
            return [submitit.SlurmJob(self._settings["submitit_folder"], name) for name in ordered]

        try:
            return _faults(jobs, inner.launch(list(jobs.values()), min(jobs)))
        except (FailedJobError, UncompletedJobError, RuntimeError) as error:
            if not submitted():
                raise ConfigError(f"hydra/launcher=slurm: Slurm takes no job: {_short(error)}") from error
        except KeyboardInterrupt:
            for job in submitted():
                job.cancel(check=False)
            raise
        for job in (waiting := submitted()):
            job.wait()
        return {
            number: f"Slurm's job {job.job_id} ended as {job.state}, its log is {job.paths.stderr}"
            for number, job in zip(jobs, waiting, strict=True)
        }


class Ray(PatientLauncher):
    """A Ray task a cell."""

    extra = "ray"
    module = "ray"

    def _launch(self, jobs: Jobs) -> dict[int, str]:
        import ray
        from ray.exceptions import RayError

        if not ray.is_initialized():
            ray.init(**self._settings["init"])
        work = ray.remote(**self._settings["remote"])(run_on_worker)
        state = Singleton.get_state()
        waiting = {
            work.remote(self._context, self._compose(number, given), self._task, state): number
            for number, given in jobs.items()
        }
        reasons: dict[int, str] = {}
        try:
            while waiting:
                (ended,), _ = ray.wait(list(waiting), num_returns=1)
                number = waiting.pop(ended)
                try:
                    ray.get(ended)
                except RayError as error:
                    reasons[number] = f"Ray: {_short(error)}"
        finally:
            # Ends what still runs, after Ctrl-C.
            ray.shutdown()
        return reasons


class Joblib(PatientLauncher):
    """A process a cell on this machine, for CPU work that is not timed; through hydra-joblib-launcher."""

    extra = "joblib"
    module = "hydra_plugins.hydra_joblib_launcher.joblib_launcher"

    def _launch(self, jobs: Jobs) -> dict[int, str]:
        from hydra_plugins.hydra_joblib_launcher.joblib_launcher import JoblibLauncher
        from joblib.externals.loky.process_executor import TerminatedWorkerError

        for number, overrides in jobs.items():
            _refuse_clock_and_gpu(self._compose(number, overrides))
        inner = JoblibLauncher(**self._settings)
        inner.setup(hydra_context=self._context, task_function=self._task, config=self._config)
        try:
            return _faults(jobs, inner.launch(list(jobs.values()), min(jobs)))
        except TerminatedWorkerError as error:
            return dict.fromkeys(jobs, f"joblib: {_short(error)}")


def run_on_worker(context: HydraContext, config: DictConfig, task: TaskFunction, state: Any) -> None:
    """One job, in another process and perhaps on another machine."""
    with suppress(FileNotFoundError):
        # Where relative folders of the command line are.
        os.chdir(config.hydra.runtime.cwd)
    setup_globals()
    Singleton.set_state(state)
    HydraConfig.instance().set_config(config)
    ended = run_job(
        hydra_context=context,
        task_function=task,
        config=config,
        job_dir_key="hydra.sweep.dir",
        job_subdir_key="hydra.sweep.subdir",
    )
    assert ended.return_value is None


def _refuse_clock_and_gpu(config: DictConfig) -> None:
    """Raise for a job whose seconds would be those of its neighbours, or whose GPU would be."""
    from harness.config import build

    told = "hydra/launcher=joblib runs cells side by side on the processor of this machine"
    if config.measure.profile != "acceptance" and not config.dry_run:
        raise ConfigError(
            f"measure={config.measure.profile}: {told}, and its seconds would be those of its neighbours."
            " Type measure=acceptance, or leave the launcher out: cells are then timed one after the other"
        )
    device = build(config.target, "target").resolved_device()
    if device.type != "cpu":
        raise ConfigError(
            f"target.device={config.target.device}: {told}, and none may use a GPU. Type target.device=cpu,"
            " or hydra/launcher=slurm or ray, which give each cell a GPU of its own"
        )


def _short(error: BaseException) -> str:
    """The first sentences of an error, on one line."""
    text = re.sub(r"\s+", " ", str(error)).strip() or type(error).__name__
    return text if len(text) <= 300 else f"{text[:300]}..."
