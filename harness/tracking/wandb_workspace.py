"""A saved view of W&B with columns and panels for the benchmark. Only saving it needs a server."""

from __future__ import annotations

import argparse
import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from harness.config import ConfigError
from harness.system.console import Console
from harness.system.files import print_json
from harness.tracking.sync import add_settings, make_tracker
from harness.tracking.wandb_tracker import WandbTracker

NAME = "Speculative decoding"
COLUMNS = (
    *("config:method", "config:target", "config:task", "config:temperature", "config:batch_size"),
    *("config:profile", "config:baseline", "summary:speedup", "summary:speedup_ci_low"),
    *("summary:speedup_ci_high", "summary:tau", "summary:tokens_per_s", "summary:verdict"),
)
_MAX_RUNS = 100
_ANY = "ENTITY"
"""Placeholder for the entity in a dry run."""


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """The sub-command `workspace` of `python -m harness.report`."""
    command = commands.add_parser(
        "workspace",
        help="save a view in W&B with the columns and panels of the benchmark",
        description="Save a view in W&B with the columns and panels of the benchmark; print its address.",
        allow_abbrev=False,
    )
    add_settings(command)
    command.add_argument("--view", metavar="URL", help="overwrite this view (default: make a new one)")
    command.add_argument("--dry-run", action="store_true", help="print the definition, save nothing")
    command.add_argument("--results", type=Path, default=Path("results"), help=argparse.SUPPRESS)


def run_command(given: argparse.Namespace, console: Console) -> None:
    """Save the view and print its address, or with `--dry-run` only print its definition as JSON.

    Raises:
        ConfigError: the package is not installed, or the server refuses.
    """
    if find_spec("wandb_workspaces") is None:
        raise ConfigError("workspace: the package is not installed; type pip install wandb-workspaces")
    tracker = make_tracker("wandb", given.settings, given.results)
    assert isinstance(tracker, WandbTracker)
    if given.dry_run:
        print_json(definition(view(tracker.entity or _ANY, tracker.project)), indent=1)
        return
    try:
        saved = save(tracker, given.view)
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ConfigError(
            f"workspace: not saved: {reason} (`wandb login`; --dry-run needs no server)"
        ) from error
    console.note(f"saved: {saved}")
    print(saved)


def save(tracker: WandbTracker, url: str | None) -> str:
    """Save the view in the tracker's project and return its address. url: an existing view to overwrite."""
    import wandb
    import wandb_workspaces.workspaces as ws

    made = view(tracker.entity or wandb.Api().default_entity, tracker.project)
    if url:
        kept = ws.Workspace.from_url(url)
        for name in ("name", "sections", "settings", "runset_settings"):
            setattr(kept, name, getattr(made, name))
        made = kept
    made.save()
    return str(made.url)


def definition(made: Any) -> dict[str, Any]:
    """The view as W&B stores it, in JSON types."""
    found: dict[str, Any] = json.loads(made._to_model().model_dump_json(by_alias=True, exclude_none=True))
    return found


def view(entity: str, project: str) -> Any:
    """The view, not saved. W&B itself adds panels of the charts, tables, figures and pages that runs log."""
    import wandb_workspaces.workspaces as ws

    return ws.Workspace(
        entity=entity,
        project=project,
        name=NAME,
        auto_generate_panels=True,
        sections=_sections(),
        settings=ws.WorkspaceSettings(max_runs=_MAX_RUNS, group_by_prefix="first"),
        runset_settings=ws.RunsetSettings(
            filters="JobType != 'training'", pinned_columns=["run:displayName", *COLUMNS]
        ),
    )


def _sections() -> list[Any]:
    import wandb_workspaces.reports.v2 as wr
    import wandb_workspaces.workspaces as ws

    prompts = [
        wr.LinePlot(title="tau by prompt", x="prompt/number", y=["prompt/tau"]),
        wr.LinePlot(title="Seconds by prompt", x="prompt/number", y=["prompt/seconds"]),
    ]
    page = wr.MediaBrowser(title="The page of a run", media_keys=["report"])
    return [
        ws.Section(name="Comparison", is_open=True, pinned=True, panels=_comparison()),
        ws.Section(name="Prompts", panels=prompts),
        ws.Section(name="Report", panels=[page]),
    ]


def _comparison() -> list[Any]:
    """Panels that set the arms beside each other."""
    import wandb_workspaces.reports.v2 as wr

    def bars(metric: str, title: str) -> Any:
        return wr.BarPlot(title=title, metrics=[metric], max_runs_to_show=_MAX_RUNS)

    tau, tokens_per_s, speedup = (wr.SummaryMetric(name) for name in ("tau", "tokens_per_s", "speedup"))
    cell = [wr.Config(name) for name in ("method", "task", "temperature", "batch_size")]
    return [
        bars("speedup", "Speedup over vanilla"),
        bars("tokens_per_s", "Tokens per second"),
        bars("tau", "Tokens per round (tau)"),
        wr.ScatterPlot(title="Speedup by tau", x=tau, y=speedup),
        wr.ParallelCoordinatesPlot(
            title="Cells and outcomes",
            columns=[
                wr.ParallelCoordinatesPlotColumn(metric=one) for one in (*cell, tau, tokens_per_s, speedup)
            ],
        ),
        wr.RunComparer(diff_only="split"),
    ]
