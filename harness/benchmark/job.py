"""One composed configuration, from its plan to reported runs; a failed run does not stop the others."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from harness.analysis.summary import summarise
from harness.benchmark.experiment import Experiment, failure
from harness.benchmark.plan import Plan, make_plan
from harness.benchmark.session import Session
from harness.config import ConfigError, build
from harness.costs.table import load_tables
from harness.reports.figures import draw_once
from harness.store.follower import FollowedStore
from harness.store.locations import RUNS
from harness.store.records import Cell, Failure
from harness.store.run_store import ResultStore, load_run
from harness.system.console import Console, warn_on_error
from harness.system.machine_lock import machine_lock
from harness.system.processes import is_follower
from harness.system.progress import waiting
from harness.target.spec import TargetSpec


class Job:
    """Measures a run per decoding; keeps the folders of the runs and the errors."""

    def __init__(self, config: DictConfig, overrides: list[str], console: Console) -> None:
        self._config, self._overrides, self._console = config, overrides, console
        kind = FollowedStore if is_follower() else ResultStore
        self._store = kind(Path(config.results) / RUNS)
        self._folders: list[Path] = []
        self._errors: list[str] = []
        self._status = 0
        self.interrupted = False

    def outcome(self) -> dict[str, Any]:
        """What the command's last line is made from; JSON types."""
        return {
            "run_dirs": [str(folder) for folder in self._folders],
            "errors": self._errors,
            "status": self._status,
        }

    def run(self, sweeping: bool) -> None:
        """Measure and report.

        sweeping: whether other jobs follow. A wrong configuration is then a failed row of the sweep;
        otherwise it is only reported, with the exit status of a wrong command line.
        """
        with ExitStack() as stack:
            try:
                self._store.check_writable()
                plan = make_plan(self._config, self._overrides)
                plan.tracker.require()
                units = plan.engine.units(plan.target)
                stack.enter_context(machine_lock(units, plan.measure.timed, self._console.note))
                stack.callback(plan.engine.close)
                session = Session(plan, self._console)
                experiments = [Experiment(session, params) for params in plan.decodings.values()]
            except (Exception, KeyboardInterrupt) as error:
                if isinstance(error, ConfigError) and not sweeping:
                    self._errors, self._status = [str(error)], 2
                    return
                for cell in cells_of(self._config):
                    self._fail(error, cell)
                return
            for experiment in experiments:
                self._measure(plan, experiment)
                if self.interrupted:
                    return

    def _measure(self, plan: Plan, experiment: Experiment) -> None:
        folder = None
        try:
            run_id = experiment.manifest(self._store).run_id
            folder = self._store.root / run_id
            fresh = not self._store.is_finished(run_id)
            experiment.run(self._store)
            if not is_follower():
                self._report(plan, folder, fresh)
        except (Exception, KeyboardInterrupt) as error:
            if folder is None or not _is_sound(folder):
                self._fail(error, experiment.cell)
                return
            self._note(error, folder.name)
        self._folders.append(folder)

    def _report(self, plan: Plan, folder: Path, fresh: bool) -> None:
        """Draw the figures of a finished run and hand it to the tracker; figures that exist are kept."""
        with warn_on_error(self._console, "the report"):
            run = load_run(folder)
            rows = summarise(run, load_tables(plan.results))
            figures: list[Path] = []
            with warn_on_error(self._console, "drawing"), waiting("drawing the figures", usual_s=10):
                # An archived run has no folder; its figures are in the archive.
                figures = draw_once(rows, folder / "figures")
            if not fresh:
                plan.tracker.finish(run, rows, figures)
                return
            self._console.note(f"{len(run.records)} generations in {run.folder}")
            for failure in run.failures:
                self._console.warn(f"{failure.kind} in {failure.where}: {failure.message}")
            plan.tracker.finish(run, rows, figures)
            for row in rows:
                if row.clock_heavy:
                    self._console.warn(
                        f"{row.method}: reading the clock takes {row.probe_share:.1%} of a round; above 1 %"
                        " the row is marked. A larger target or batch has longer rounds."
                    )

    def _fail(self, error: BaseException, cell: Cell) -> None:
        """Record the failure of a cell that has no readable run."""
        where = f"{cell.target}, {cell.task}, {cell.decoding}"
        config: Any = OmegaConf.to_container(self._config, resolve=False)
        failed = self._note(error, where)
        try:
            self._folders.append(
                self._store.write_failed_cell(failed, cell, config=config, overrides=self._overrides)
            )
        except (ConfigError, OSError) as fault:
            self._errors.append(f"{where}: {fault}")

    def _note(self, error: BaseException, where: str) -> Failure:
        self.interrupted |= isinstance(error, KeyboardInterrupt)
        failed = failure(error, where)
        self._errors.append(f"{where}: {failed.message}")
        self._status = 1
        return failed


def _is_sound(folder: Path) -> bool:
    try:
        load_run(folder)
    except ConfigError:
        return False
    return True


def cells_of(config: DictConfig) -> list[Cell]:
    """The cells that a configuration asks for, as far as they can be read without building everything."""
    return [
        Cell(
            target=str(config.target.name),
            task=str(config.task.name),
            decoding=str(name),
            temperature=_number(node.get("temperature", 0)),
            batch_size=int(_number(config.measure.get("batch_size", 1))),
            profile=str(config.measure.profile),
            baseline=_baseline(config),
            acceptor=_name_of(config.acceptor, "acceptor"),
            engine=_name_of(config.engine, "engine"),
            scenario=str(config.scenario.name),
        )
        for name, node in (config.decodings or {}).items()
    ]


def _baseline(config: DictConfig) -> str:
    """What the engine calls its vanilla; the local engine's word if either cannot be built."""
    try:
        target: TargetSpec = build(config.target, "target")
        return str(build(config.engine, "engine").baseline(target))
    except ConfigError:
        strong = config.target.get("cache") == "auto" and config.target.get("compile")
        return "strong" if strong else "eager"


def _name_of(node: DictConfig, where: str) -> str:
    """The name of an object; that of its class if it cannot be built, because that may be what failed."""
    try:
        return str(build(node, where).name)
    except ConfigError:
        return str(node["_target_"]).rpartition(".")[2].lower()


def _number(value: Any) -> float:
    """0 if the value is not a number, because that may be what failed."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return 0.0
