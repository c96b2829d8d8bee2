"""Sends stored runs to a tracker: after an outage, after `tracker=none`, or to another project.

Nothing is sent twice: a run's id does not depend on who sends it, runs that the tracker has completely are
skipped, and runs that broke off are resumed.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

import conf
from harness.analysis.summary import summarise
from harness.config import ConfigError, build
from harness.costs.table import load_tables
from harness.reports import figures
from harness.store.locations import RUNS
from harness.store.records import Run
from harness.store.run_store import load_runs
from harness.system.console import Console, warn_on_error
from harness.system.files import print_json
from harness.tracking.tracker import DashboardTracker

_FOLDER = Path(conf.__file__).parent / "tracker"
_NONE = "none"
_SENT_AT_ONCE = {"wandb": {"mode": "online"}}
"""Defaults that differ from the trackers' YAML files here, because `sync` is typed to send."""


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """The sub-command `sync` of `python -m harness.report`."""
    command = commands.add_parser(
        "sync",
        help="send stored runs that W&B or another tracker lacks",
        description=f"{__doc__}\nstdout gets one JSON document. Exit status 1: a run could not be sent.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    command.add_argument(
        "--tracker", choices=_names(), default="wandb", help="name of a YAML file in conf/tracker"
    )
    add_settings(command)
    command.add_argument("--results", type=Path, default=Path("results"), help="folder that holds runs/")
    command.add_argument(
        "--only", metavar="PATTERN", help="only run ids that match it, as in 'smollm2_135m.*'"
    )


def add_settings(command: argparse.ArgumentParser) -> None:
    """Add the arguments that set the tracker, which are the same as the benchmark's."""
    command.add_argument(
        "settings",
        nargs="*",
        metavar="tracker.KEY=VALUE",
        help="as for the benchmark: tracker.project=NAME tracker.entity=NAME; tracker.mode=offline writes"
        " files, W&B's mode is online unless given",
    )


def run_command(given: argparse.Namespace, console: Console) -> bool:
    """Send the chosen runs and return whether the tracker has all of them now.

    Raises:
        ConfigError: there are no such runs, or the tracker is set wrongly.
    """
    tracker = make_tracker(given.tracker, given.settings, given.results)
    runs = load_runs(given.results / RUNS)
    chosen = [run for run in runs if fnmatchcase(run.manifest.run_id, given.only or "*")]
    if not chosen:
        raise ConfigError(
            f"{given.results / 'runs'}: none of {len(runs)} runs matches {given.only or '*'!r}; * stands for"
            " anything. `python -m harness.report build` lists them."
        )
    outcome = send_all(tracker, chosen, given.results, console)
    print_json(outcome)
    return not outcome["failed"]


def make_tracker(name: str, settings: Sequence[str], results: Path) -> DashboardTracker:
    """The tracker that `conf/tracker/NAME.yaml` describes. settings: `tracker.KEY=VALUE` each.

    Raises:
        ConfigError: a setting that it does not have, or a package that is not installed.
    """
    config: Any = OmegaConf.create({"results": str(results)})
    config.tracker = OmegaConf.merge(OmegaConf.load(_FOLDER / f"{name}.yaml"), _SENT_AT_ONCE.get(name, {}))
    for setting in settings:
        if not setting.startswith("tracker.") or "=" not in setting:
            raise ConfigError(f"{setting}: a setting is tracker.KEY=VALUE, as in tracker.project=NAME")
    try:
        config = OmegaConf.merge(config, OmegaConf.from_dotlist(list(settings)))
        tracker: DashboardTracker = build(config.tracker, "tracker")
    except OmegaConfBaseException as error:
        raise ConfigError(f"{' '.join(settings)}: {error}") from error
    tracker.require()
    return tracker


def send_all(
    tracker: DashboardTracker, runs: Sequence[Run], results: Path, console: Console
) -> dict[str, Any]:
    """Send the arms of `runs` that the tracker lacks, with the runs' figures.

    Keys of the result: `sent` and `already`: lists of arms by run id. `left_out`: ids of unfinished runs.
    `failed`: error texts by run id, for every run if the tracker as a whole failed.
    """
    outcome: dict[str, Any] = {"sent": {}, "already": {}, "left_out": [], "failed": {}}
    whole = [run for run in runs if run.finished and run.manifest.arms]
    outcome["left_out"] = [run.manifest.run_id for run in runs if run not in whole]
    for run_id in outcome["left_out"]:
        console.note(f"run {run_id}: not finished, left out")
    try:
        tracker.check()
    except Exception as error:
        console.error(f"nothing can be sent: {_describe(error)}")
        outcome["failed"] = {run.manifest.run_id: _describe(error) for run in whole}
        return outcome
    costs = load_tables(results)
    for run in whole:
        run_id = run.manifest.run_id
        try:
            rows = summarise(run, costs)
            drawn: list[Path] = []
            with warn_on_error(console, "drawing"):
                drawn = figures.draw_once(rows, Path(run.folder) / "figures")
            sent = tracker.send(run, rows, drawn)
        except Exception as error:
            console.error(f"run {run_id}: not sent: {_describe(error)}")
            outcome["failed"][run_id] = _describe(error)
            continue
        for key, arms, words in (("sent", sent.now, "sent"), ("already", sent.already, "there already")):
            if arms:
                outcome[key][run_id] = arms
                console.note(f"run {run_id}: {words}: {', '.join(arms)}")
    return outcome


def _describe(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split()) or 'no reason given'}"


def _names() -> list[str]:
    return sorted(path.stem for path in _FOLDER.glob("*.yaml") if path.stem != _NONE)
