"""docs/: what is typed there works, and what is printed is explained there."""

from __future__ import annotations

import json
import re
import shlex
import sys
from pathlib import Path
from typing import get_args

import pytest
import yaml

import methods
from harness.analysis.summary import pairwise, summarise
from harness.bench import bench
from harness.cli import hydra_app, report_command
from harness.config import build
from harness.decoding.acceptance import Coupled
from harness.decoding.sampling import DecodingParams
from harness.reports import formatting
from harness.reports.markdown import markdown
from harness.store.records import VerdictKind
from methods.vanilla import Vanilla
from tests.support.builders import sample_run, sample_runs
from tests.support.fake_wandb import connected
from tests.support.targets import engine, requests

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"


def blocks(page: str, language: str) -> list[str]:
    text = (DOCS / page).read_text()
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def typed(words: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    """The exit status of a command line of ours, in this process."""
    assert words[:2] == ["python", "-m"]
    if words[2] == "harness.report":
        return report_command.main(words[3:])
    assert words[2] == "harness.bench"
    monkeypatch.setattr(sys, "argv", ["bench", *words[3:]])
    with pytest.raises(SystemExit) as ended:
        hydra_app.main(bench)
    return int(ended.value.code or 0)


def test_the_tutorials_commands_run_as_they_stand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    commands = [line for block in blocks("tutorial.md", "bash") for line in block.splitlines()]
    printed = []
    for command in commands:
        assert typed(shlex.split(command), monkeypatch) == 0, command
        printed.append(capsys.readouterr().out)
    dry, measured = (json.loads(text) for text in printed[:2])
    assert [cell["state"] for cell in dry["cells"]] == ["missing", "missing"]
    assert {row["verdict"] for row in measured["rows"]} == {"identical"}
    assert "They differ in temperature" in printed[2]
    assert {"report.md", "report.tex", "rows.csv", "pairs.csv"} <= {
        path.name for path in (tmp_path / "results" / "tables").iterdir()
    }


def test_the_commands_on_tracking_send_every_run_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("wandb_workspaces", reason="views are made by wandb-workspaces, an extra")
    monkeypatch.chdir(tmp_path)
    commands = [line for block in blocks("tracking.md", "bash") for line in block.splitlines()]
    printed = []
    with connected(tmp_path / "home", monkeypatch) as server:
        for command in commands:
            words = [*shlex.split(command), *["+measure.bandwidth_gib=0.01"] * ("harness.bench" in command)]
            assert typed(words, monkeypatch) == 0, command
            printed.append(capsys.readouterr().out)
    measured, online, offline, _, view = printed
    runs = {Path(folder).name for folder in json.loads(measured)["run_dirs"]}
    assert len(runs) == 2
    assert set(json.loads(online)["sent"]) == set(json.loads(offline)["already"]) == runs
    assert len(server.runs) == 4
    assert len({run.group for run in server.runs.values()}) == 1
    page = (DOCS / "tracking.md").read_text()
    logged = {key for run in server.runs.values() for key in (*run.summary, *run.config)}
    told = set(re.findall(r"`([a-z]\w+)`", page)) - {"bash", "report", "indicative"}
    assert told <= logged, told - logged
    assert view.startswith(server.url)


def test_the_example_method_keeps_vanillas_output_and_drafts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (code,), (settings,) = blocks("method.md", "python"), blocks("method.md", "yaml")
    (tmp_path / "last_seen.py").write_text(code)
    monkeypatch.setattr(methods, "__path__", [*methods.__path__, str(tmp_path)])
    drafter, loop = build(yaml.safe_load(settings), "methods.last_seen"), engine("llama")
    assert settings.startswith("# @package methods.last_seen\n")
    for arm in (vanilla := Vanilla(), drafter):
        arm.bind(loop.target)
    for params in (
        DecodingParams(name="greedy", max_new_tokens=24),
        DecodingParams(name="sampled", temperature=1.0, max_new_tokens=24),
    ):
        ours, theirs = (loop.generate(requests(), arm, params, Coupled()) for arm in (drafter, vanilla))
        assert [one.output_ids for one in ours] == [one.output_ids for one in theirs]
        assert sum(sum(one.drafted) for one in ours) > 0


def test_every_column_and_verdict_is_explained() -> None:
    page = (DOCS / "numbers.md").read_text()
    runs = [*sample_runs(), sample_run("b4", batch_size=4, profile="quick", acceptor="rejection", target="b")]
    report = markdown(summarise(runs), pairwise(runs))
    headers = {
        cell.replace("\\", "")
        for line, below in zip(report.splitlines(), report.splitlines()[1:], strict=False)
        if below.startswith("| :") or below.startswith("| -")
        for cell in line.strip("| ").split(" | ")
    }
    explained = set(re.findall(r"\*\*([^*]+)\*\*", page))
    assert {name for name in headers if not name.startswith("vs ")} - explained <= {"footnote"}
    assert {name for name, _ in formatting.AXES} <= explained
    assert all(f"`{kind}`" in page for kind in get_args(VerdictKind))


@pytest.mark.parametrize("page", sorted(path.name for path in DOCS.glob("*.md")))
def test_links_of_a_page_lead_somewhere(page: str) -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", (DOCS / page).read_text()):
        assert (DOCS / target).exists(), target


def test_completion_knows_groups_and_options(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["specbench", "-sc", "query=bash"])
    monkeypatch.setenv("COMP_LINE", "specbench target=tin")
    monkeypatch.setenv("COMP_POINT", "20")
    assert hydra_app.main(bench) == 0
    assert set(capsys.readouterr().out.split()) >= {"target=tiny", "target=tiny_qwen3"}
