"""Launchers that hand the jobs of a sweep to Slurm, Ray or joblib."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout, suppress
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus, run_job, setup_globals
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig
from typing_extensions import override

from harness.config import ConfigError, build
from harness.sweeps.patient_launcher import Jobs, PatientLauncher
from harness.system.secrets import redact


class Slurm(PatientLauncher):
    """One Slurm job per job of the sweep, all in one array, through hydra-submitit-launcher."""

    name = extra = "slurm"
    module = "hydra_plugins.hydra_submitit_launcher.submitit_launcher"

    @override
    def _launch(self, jobs: Jobs) -> dict[int, str]:
        import submitit
        from hydra_plugins.hydra_submitit_launcher.submitit_launcher import SlurmLauncher
        from submitit.core.utils import FailedJobError, UncompletedJobError

        refuse_secrets([*self._config.hydra.overrides.hydra, *(one for job in jobs.values() for one in job)])
        inner = SlurmLauncher(**self._settings)
        inner.setup(hydra_context=self._context, task_function=self._task, config=self._config)
        root = Path(self._settings["submitit_folder"]).parent
        earlier = set(root.glob("*/*_submitted.pkl"))

        def submitted() -> list[Any]:
            """The Slurm jobs of this launch, in the order of their numbers."""
            names = {path.parent.name for path in set(root.glob("*/*_submitted.pkl")) - earlier}
            ordered = sorted(names, key=lambda name: [int(part) for part in name.split("_")])
            return [submitit.SlurmJob(self._settings["submitit_folder"], name) for name in ordered]

        try:
            return _faults(jobs, inner.launch(list(jobs.values()), min(jobs)))
        except (FailedJobError, UncompletedJobError, RuntimeError) as error:
            if not submitted():
                raise ConfigError(f"hydra/launcher=slurm: Slurm accepts no job: {_short(error)}") from error
        except KeyboardInterrupt:
            if arrays := {job.job_id.partition("_")[0] for job in submitted()}:
                subprocess.run(["scancel", *arrays], check=False)
            raise
        for job in (waiting := submitted()):
            job.wait()
        return {
            number: f"Slurm's job {job.job_id} ended as {job.state}, its log is {job.paths.stderr}"
            for number, job in zip(jobs, waiting, strict=True)
        }


class Ray(PatientLauncher):
    """One Ray task per job of the sweep."""

    name = extra = "ray"
    module = "ray"

    @override
    def _launch(self, jobs: Jobs) -> dict[int, str]:
        # Ray reports dead workers on stdout, which is reserved for the JSON line.
        with redirect_stdout(sys.stderr):
            return self._run(jobs)

    def _run(self, jobs: Jobs) -> dict[int, str]:
        import ray
        from ray.exceptions import RayError

        try:
            ray.init(**self._settings["init"])
        except (ValueError, ConnectionError) as error:
            raise ConfigError(
                f"hydra.launcher.init.address={self._settings['init']['address']}: {_short(error)} Allowed:"
                " local, auto, HOST:PORT"
            ) from error
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
            # After Ctrl-C, this ends the tasks that still run.
            ray.shutdown()
        return reasons


class Processes(PatientLauncher):
    """Processes of this machine, for untimed work on its CPU; through hydra-joblib-launcher."""

    name = "processes"  # a launcher called `joblib` would clash with that of Hydra's own plugin
    extra = "joblib"
    module = "hydra_plugins.hydra_joblib_launcher.joblib_launcher"

    @override
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


def refuse_secrets(overrides: Sequence[str]) -> None:
    """Raise ConfigError for overrides that hold a secret, which the files of Slurm's jobs would show."""
    for one in overrides:
        # Hydra escapes the signs of an interpolation.
        typed = one.replace("\\", "")
        if (safe := redact([typed])[0]) != typed:
            raise ConfigError(
                f"{safe}: hydra/launcher=slurm keeps what is typed in files that every job reads. Put the"
                " secret into an environment variable and type a reference to it: '${oc.env:NAME}'"
            )


def run_on_worker(context: HydraContext, config: DictConfig, task: TaskFunction, state: Any) -> None:
    """Run one job in a worker process, perhaps on another machine."""
    with suppress(FileNotFoundError):
        # Relative paths of the command line start in the folder where it was typed.
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
    """Raise ConfigError for a job that is timed or uses a GPU, which its neighbours would disturb."""
    where = "hydra/launcher=processes runs cells side by side on the processor of this machine"
    if config.measure.profile != "acceptance" and not config.dry_run:
        raise ConfigError(
            f"measure={config.measure.profile}: {where}, and they would slow one another down. Type"
            " measure=acceptance, or leave the launcher out: cells are then timed one after the other"
        )
    device = build(config.target, "target").resolved_device()
    if device.type != "cpu":
        raise ConfigError(
            f"target.device={config.target.device}: {where}, and none may use a GPU. Type target.device=cpu,"
            " or hydra/launcher=slurm or ray, which give each cell a GPU of its own"
        )


def _short(error: BaseException) -> str:
    """The text of an error on one line, cut after 300 characters."""
    text = re.sub(r"\s+", " ", str(error)).strip() or type(error).__name__
    return text if len(text) <= 300 else f"{text[:300]}..."


def _faults(jobs: Jobs, returned: Sequence[JobReturn]) -> dict[int, str]:
    """Exceptions raised by jobs whose process ended normally, by job number."""
    return {
        number: f"{type(fault).__name__}: {_short(fault)}"
        for number, one in zip(jobs, returned, strict=True)
        if one.status == JobStatus.FAILED
        for fault in [one._return_value]
    }
