"""The W&B view: it asks for nothing that runs do not log, and is made without a server."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from harness.analysis.summary import summarise
from harness.cli import report_command
from harness.tracking import wandb_workspace
from harness.tracking.run_log import arm_log
from tests.support.builders import sample_run


@pytest.fixture
def definition(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    pytest.importorskip("wandb_workspaces", reason="views are made by wandb-workspaces, an extra")
    assert report_command.main(["workspace", "--dry-run", "tracker.entity=team"]) == 0
    made: dict[str, Any] = json.loads(capsys.readouterr().out)
    return made


def test_columns_and_panels_name_what_is_logged(definition: dict[str, Any]) -> None:
    run = sample_run()
    log = arm_log(run, "vanilla", summarise(run), [])
    numbers = {*log.numbers, *log.history[0], *log.shown}
    known = {f"summary:{name}" for name in log.numbers} | {f"config:{name}" for name in log.config}
    assert set(wandb_workspace.COLUMNS) <= known
    panels = [
        panel for s in definition["spec"]["section"]["panelBankConfig"]["sections"] for panel in s["panels"]
    ]
    text = json.dumps([panel["config"] for panel in panels])
    named = set(re.findall(r'"summary:([^"]+)"', text))
    named |= {name for panel in panels for name in panel["config"].get("metrics", [])}
    named |= {name for panel in panels for name in panel["config"].get("mediaKeys", [])}
    assert {"speedup", "tau", "tokens_per_s", "prompt/tau", "report"} <= named <= numbers
    assert set(re.findall(r'"config:([\w.]+?)\.value"', text)) <= set(log.config)


def test_without_the_package_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(wandb_workspace, "find_spec", lambda name: None)
    assert report_command.main(["workspace"]) == 2
    assert "pip install wandb-workspaces" in capsys.readouterr().err
