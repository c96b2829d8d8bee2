"""W&B online, against a server on this machine: what it has afterwards, after an outage, under an agent."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import conf
from harness.analysis.row import Row
from harness.analysis.summary import summarise
from harness.bench import bench
from harness.cli import hydra_app, report_command
from harness.store.records import BASELINE, Run
from harness.store.run_store import load_run, load_runs
from harness.tracking import wandb_tracker, wandb_workspace
from harness.tracking.run_log import group_of, log_id
from harness.tracking.wandb_tracker import WandbTracker
from tests.support.builders import failed_run, sample_run, write_runs
from tests.support.fake_wandb import FakeWandb, connected

SWEEP = Path(conf.__file__).parent / "wandb_sweep.yaml"


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeWandb]:
    with connected(tmp_path / "home", monkeypatch) as kept:
        yield kept


def stored(results: Path, *runs: Run) -> list[Run]:
    write_runs(runs or [sample_run()], results)
    return load_runs(results / "runs")


def tracker(tmp_path: Path, **settings: Any) -> WandbTracker:
    return WandbTracker(mode="online", dir=str(tmp_path / "wandb"), **{"timeout_s": 300.0, **settings})


def sync(tmp_path: Path, *arguments: str) -> int:
    return report_command.main(["sync", "--results", str(tmp_path), *arguments])


def row_of(rows: list[Row], arm: str) -> Row:
    return next(row for row in rows if row.method == arm)


def test_runs_that_no_tracker_heard_of_are_sent_once(
    tmp_path: Path, server: FakeWandb, capsys: pytest.CaptureFixture[str]
) -> None:
    run, other = stored(tmp_path, sample_run(), sample_run("tiny.smoke.greedy.1", seed=1))
    assert sync(tmp_path) == 0
    first = json.loads(capsys.readouterr().out)
    assert first["sent"] == {one.manifest.run_id: list(run.manifest.arms) for one in (run, other)}
    rows = summarise(run)
    for arm in run.manifest.arms:
        kept, row = server.runs[log_id(run, arm)], row_of(rows, arm)
        assert (kept.state, kept.job_type, kept.group) == ("finished", arm, group_of(run.manifest.cell))
        assert kept.project == "specbench-harness"
        assert kept.summary["tau"] == row.tau
        assert kept.summary["speedup"] == row.speedup
        assert kept.config["method"] == arm
        tokens = [line["prompt/tokens"] for line in kept.history.values() if "prompt/tokens" in line]
        assert tokens == [len(record.output_ids) for record in run.records if record.arm == arm]
    assert len({kept.group for kept in server.runs.values()}) == 1
    assert any(name.startswith("media/html/report") for name in server.runs[log_id(run, BASELINE)].files)
    num_writes = server.asked.count("UpsertBucket")
    assert sync(tmp_path) == 0
    again = json.loads(capsys.readouterr().out)
    assert (again["sent"], again["already"]) == ({}, first["sent"])
    assert server.asked.count("UpsertBucket") == num_writes


def test_a_run_that_broke_off_is_gone_on_with(tmp_path: Path, server: FakeWandb) -> None:
    (run,) = stored(tmp_path)
    assert sync(tmp_path) == 0
    kept = server.runs[log_id(run, "ngram")]
    whole = [line["prompt/tokens"] for line in kept.history.values() if "prompt/tokens" in line]
    kept.state, kept.summary = "crashed", {}
    kept.history = {number: line for number, line in kept.history.items() if number < 20}
    assert sync(tmp_path) == 0
    assert kept.state == "finished"
    assert [line["_step"] for line in kept.history.values()] == list(range(33))
    assert [line["prompt/tokens"] for line in kept.history.values() if "prompt/tokens" in line] == whole
    assert kept.summary["verdict"] == "identical"


def test_an_outage_while_sending_is_a_warning_and_sync_makes_up_for_it(
    tmp_path: Path, server: FakeWandb, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (run,) = stored(tmp_path)
    server.fail = {"file_stream"}
    monkeypatch.setattr(wandb_tracker, "_LOOKS_S", (0.0,))
    tracker(tmp_path).finish(run, summarise(run), [])
    assert "Send it later: python -m harness.report sync" in capsys.readouterr().err
    assert {kept.state for kept in server.runs.values()} == {"running"}
    server.fail = set()
    assert sync(tmp_path) == 0
    assert {kept.state for kept in server.runs.values()} == {"finished"}
    assert len(server.runs) == len(run.manifest.arms)


def test_what_cannot_be_sent_is_told_with_exit_status_1(
    tmp_path: Path, server: FakeWandb, capsys: pytest.CaptureFixture[str]
) -> None:
    run, unfinished = sorted(stored(tmp_path, sample_run(), failed_run()), key=lambda one: not one.finished)
    server.fail = {"UpsertBucket"}
    assert sync(tmp_path) == 1
    said = capsys.readouterr()
    told = json.loads(said.out)
    assert list(told["failed"]) == [run.manifest.run_id]
    assert "out of order" in told["failed"][run.manifest.run_id]
    assert told["left_out"] == [unfinished.manifest.run_id]
    assert f"run {unfinished.manifest.run_id}: not finished, left out" in said.err
    server.fail = {"Viewer"}
    assert sync(tmp_path) == 1
    assert "nothing can be sent" in capsys.readouterr().err


def test_settings_of_sync_are_those_of_the_tracker(
    tmp_path: Path, server: FakeWandb, capsys: pytest.CaptureFixture[str]
) -> None:
    stored(tmp_path)
    assert sync(tmp_path, "tracker.project=elsewhere", "tracker.log_records=false") == 0
    assert {kept.project for kept in server.runs.values()} == {"elsewhere"}
    assert "results" not in {made["artifactTypeName"] for made in server.artifacts}
    for wrong, remedy in (
        ("tracker.projekt=x", "project"),
        ("project=x", "tracker.KEY=VALUE"),
        ("tracker.mode=up", "online"),
    ):
        assert sync(tmp_path, wrong) == 2
        assert remedy in capsys.readouterr().err
    assert sync(tmp_path, "--only", "nothing*") == 2


def agent(sweep: dict[str, Any], values: dict[str, Any], tmp_path: Path) -> tuple[list[str], dict[str, str]]:
    """The command line and the environment that `wandb agent` gives a trial."""
    from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args
    from wandb.sdk.lib.config_util import save_config_file_from_dict

    given = {key: {"value": value} for key, value in values.items()}
    path = tmp_path / "config-trial1.yaml"
    save_config_file_from_dict(str(path), given)
    variables = create_sweep_command_args({"args": given})
    words: list[str] = []
    for word in map(str, create_sweep_command(sweep["command"])):
        named = word[2:-1] if word.startswith("${") else ""
        words += (
            variables[named]
            if named in variables
            else [{"env": "env", "interpreter": "python"}.get(named, word)]
        )
    names = {"SWEEP_ID": "sweep1", "RUN_ID": "trial1", "SWEEP_PARAM_PATH": str(path)}
    return words, {f"WANDB_{key}": value for key, value in names.items()} | {
        "WANDB_PROJECT": sweep["project"]
    }


def test_a_trial_of_the_sweep_has_the_numbers_of_the_method_that_it_tunes(
    tmp_path: Path, server: FakeWandb, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = yaml.safe_load(SWEEP.read_text())
    values = {name: allowed["values"][0] for name, allowed in sweep["parameters"].items()}
    words, environment = agent(sweep, values, tmp_path)
    assert words[:4] == ["env", "python", "-m", "harness.bench"]
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    tiny = [
        "target=tiny",
        "task=smoke",
        "task.limit=2",
        "max_new_tokens=12",
        f"results={tmp_path / 'results'}",
    ]
    monkeypatch.setattr(sys, "argv", ["bench", *words[4:], *tiny])
    with pytest.raises(SystemExit) as ended:
        hydra_app.main(bench)
    assert ended.value.code == 0, capsys.readouterr().err
    trial, run = server.runs["trial1"], load_runs(tmp_path / "results" / "runs")[0]
    assert (trial.sweep, trial.job_type, trial.state) == ("sweep1", "ngram", "finished")
    row = row_of(summarise(run), "ngram")
    assert trial.summary[sweep["metric"]["name"]] == row.speedup
    assert any(line.get("speedup") == row.speedup for line in trial.history.values())
    assert {name: trial.config[name] for name in values} == values
    assert trial.config["settings"]["draft_length"] == values["methods.ngram.draft_length"]
    beside = server.runs[log_id(run, BASELINE)]
    assert (beside.sweep, beside.state, beside.group) == ("", "finished", trial.group)
    assert set(server.runs) == {"trial1", log_id(run, BASELINE)}
    assert os.environ["WANDB_RUN_ID"] == "trial1"
    # Outside the agent the trial's run still is that arm's.
    for name in environment:
        monkeypatch.delenv(name)
    assert sync(tmp_path / "results") == 0
    assert set(server.runs) == {"trial1", log_id(run, BASELINE)}


@pytest.mark.parametrize(
    ("settings", "methods", "remedy"),
    [
        ({"mode": "offline"}, ("suffix",), "tracker.mode=online"),
        ({}, ("suffix", "ngram"), "method=[NAME]"),
    ],
)
def test_a_trial_that_the_sweep_could_not_judge_is_refused(
    tmp_path: Path,
    server: FakeWandb,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    settings: dict[str, str],
    methods: tuple[str, ...],
    remedy: str,
) -> None:
    (run,) = stored(tmp_path)
    run.manifest.arms.clear()
    run.manifest.arms.update({arm: {} for arm in (BASELINE, *methods)})
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep1")
    monkeypatch.setenv("WANDB_RUN_ID", "trial1")
    WandbTracker(**{"mode": "online", "dir": str(tmp_path / "w"), **settings}).finish(run, summarise(run), [])
    assert remedy in capsys.readouterr().err
    assert server.runs == {}


def test_a_second_run_of_a_trial_does_not_replace_the_first(
    tmp_path: Path, server: FakeWandb, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = sample_run(), sample_run("tiny.smoke.sampled.1", decoding="sampled", temperature=1.0)
    for run in (first, second):
        del run.manifest.arms["suffix"]
    write_runs([first, second], tmp_path)
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep1")
    monkeypatch.setenv("WANDB_RUN_ID", "trial1")
    greedy, sampled = (load_run(tmp_path / "runs" / run.manifest.run_id) for run in (first, second))
    assert tracker(tmp_path).send(greedy, summarise(greedy), []).now == ["vanilla", "ngram"]
    told = dict(server.runs["trial1"].summary)
    with pytest.raises(ValueError, match=r"decoding=\[greedy\]"):
        tracker(tmp_path).send(sampled, summarise(sampled), [])
    assert server.runs["trial1"].summary == told


def test_the_workspace_is_saved_and_renewed(
    tmp_path: Path, server: FakeWandb, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("wandb_workspaces", reason="views are made by wandb-workspaces, an extra")
    assert report_command.main(["workspace", "tracker.project=mine"]) == 0
    address = capsys.readouterr().out.strip()
    (view,) = server.views
    assert (view["entityName"], view["projectName"], view["displayName"]) == (
        "me",
        "mine",
        wandb_workspace.NAME,
    )
    assert view["name"].removeprefix("nw-").removesuffix("-v") in address
    assert report_command.main(["workspace", "tracker.project=mine", "--view", address]) == 0
    assert [one.get("id") for one in server.views] == [None, "view1"]
    assert server.views[1]["name"] == view["name"]
