"""Job: one composed configuration from plan to reported runs; a fault in one leaves the others standing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from harness.config import ConfigError
from harness.experiment import Experiment, Session, failure
from harness.figures import draw
from harness.plan import Plan, make_plan
from harness.records import Cell, Failure
from harness.reporters import Console, Reporters
from harness.rows import summarise, to_json
from harness.store import ResultStore, load_run


class Job:
    """Measures a run per decoding; remembers where they lie and what went wrong."""

    def __init__(self, config: DictConfig, overrides: list[str], console: Console) -> None:
        self._config, self._overrides, self._console = config, overrides, console
        self._store = ResultStore(Path(config.results) / "runs")
        self._folders: list[Path] = []
        self._errors: list[str] = []
        self._status = 0
        self.interrupted = False

    def outcome(self) -> dict[str, Any]:
        """For the aggregate; JSON types."""
        return {
            "run_dirs": [str(folder) for folder in self._folders],
            "errors": self._errors,
            "status": self._status,
        }

    def run(self, sweeping: bool) -> None:
        """Measure and report.

        sweeping: what is wrong with the configuration becomes a failed row, as in a sweep others go on;
        else it is only told, with the status of a wrong command line.
        """
        try:
            plan = make_plan(self._config, self._overrides)
            session = Session(plan, self._console)
            experiments = [Experiment(session, params) for params in plan.decodings.values()]
        except (Exception, KeyboardInterrupt) as error:
            if isinstance(error, ConfigError) and not sweeping:
                self._errors, self._status = [str(error)], 2
                return
            for cell in _cells(self._config):
                self._fail(error, cell)
            return
        for experiment in experiments:
            self._measure(plan, experiment)
            if self.interrupted:
                return

    def _measure(self, plan: Plan, experiment: Experiment) -> None:
        run_id = experiment.manifest(self._store).run_id
        folder = self._store.root / run_id
        fresh = not self._store.is_finished(run_id)
        try:
            experiment.run(self._store)
        except (Exception, KeyboardInterrupt) as error:
            self._note(error, run_id)
        if folder.is_dir():
            self._folders.append(folder)
        if fresh and self._store.is_finished(run_id):
            run = load_run(folder)
            rows = summarise(run)
            reporters = Reporters(self._console, plan.tracker)
            reporters.finish(run, [to_json(row) for row in rows], draw(rows, folder / "figures"))

    def _fail(self, error: BaseException, cell: Cell) -> None:
        """A cell that has no run."""
        where = f"{cell.target}, {cell.task}, {cell.decoding}"
        config: Any = OmegaConf.to_container(self._config, resolve=False)
        folder = self._store.write_failed_cell(
            self._note(error, where), cell, config=config, overrides=self._overrides
        )
        self._folders.append(folder)

    def _note(self, error: BaseException, where: str) -> Failure:
        self.interrupted |= isinstance(error, KeyboardInterrupt)
        told = failure(error, where)
        self._errors.append(f"{where}: {told.message}")
        self._status = 1
        return told


def _cells(config: DictConfig) -> list[Cell]:
    """The cells that a configuration asks for, as far as it can be read without building anything."""
    return [
        Cell(
            target=str(config.target.name),
            task=str(config.task.name),
            decoding=str(name),
            temperature=float(node.get("temperature", 0.0)),
            batch_size=int(config.measure.get("batch_size", 1)),
            profile=str(config.measure.profile),
            baseline="eager",
            acceptor=str(config.acceptor["_target_"]).rpartition(".")[2].lower(),
        )
        for name, node in (config.decodings or {}).items()
    ]
