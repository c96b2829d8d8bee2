"""README and docs/: commands work, paths and links exist, what is printed is explained, pages stay short."""

from __future__ import annotations

import argparse
import json
import re
import shlex
import sys
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from hydra import compose, initialize_config_module
from hydra.core.override_parser.overrides_parser import OverridesParser

import methods
from harness import sweep
from harness.analysis.summary import pairwise, summarise
from harness.bench import bench
from harness.benchmark.plan import make_plan
from harness.cli import hydra_app, report_command
from harness.cli.method_parts import as_options
from harness.config import build
from harness.conformance import suite
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
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]
HYDRA_COMMANDS = ("bench", "cost", "train", "serve")
PARSERS = {"report": report_command.main, "sweep": sweep.main, "conformance": suite.main}
FOLDERS = ("harness", "methods", "conf", "tests", "scripts", "docs")
READERS_OWN = r"NAME|my_idea|last_seen"
"""Names that stand for one of the reader's: at least one file has to lie in such a place."""
PRIVATE_WORDS = r"\b(?:laws?|go(?:es)? on|gone on|dear(?:er)?|so many|the like)\b"
"""Words that the pages do not use: they say distribution, resume and expensive."""


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
    named = set(re.findall(r"`([a-z]\w+)`", page)) - {"bash", "report", "indicative"}
    assert named <= logged, named - logged
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


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_links_of_a_page_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_every_path_that_a_page_names_exists(page: Path) -> None:
    named = set(re.findall(rf"(?<![\w/.-])(?:{'|'.join(FOLDERS)})/[\w./]*", page.read_text()))
    assert named or page.name not in ("README.md", "architecture.md")
    missing = {path for path in named if not list(ROOT.glob(re.sub(READERS_OWN, "*", path).rstrip("/.")))}
    assert not missing


def test_make_targets_that_pages_name_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    named = {
        target
        for page in PAGES
        for target in re.findall(r"(?:^|`)make (\w+)", page.read_text(), re.MULTILINE)
    }
    assert {"bench", "test"} <= named
    assert all(f"\n{target}:" in makefile for target in named)


@pytest.mark.parametrize(("page", "limit"), [("README.md", 120), ("docs/architecture.md", 60)])
def test_a_page_stays_short(page: str, limit: int) -> None:
    assert len((ROOT / page).read_text().splitlines()) <= limit


def test_the_readme_has_one_picture_and_one_table_of_results_with_six_rows() -> None:
    page = (ROOT / "README.md").read_text()
    assert len(re.findall(r"!\[", page)) == 1
    results = re.findall(r"^\| [\w.]+ \| +[\d.]+ \|", page, re.MULTILINE)
    assert 0 < len(results) <= 6


def test_every_package_has_its_sentence() -> None:
    page = (DOCS / "architecture.md").read_text()
    described = re.findall(r"^\* `harness/(\w+)/`[^.]+\.$", page, re.MULTILINE)
    assert sorted(described) == sorted(path.parent.name for path in ROOT.glob("harness/*/__init__.py"))


def test_the_glossary_has_one_sentence_for_each_of_at_most_25_words() -> None:
    entries = re.findall(r"^\* \*\*([\w ]+)\*\*: (.+)$", (DOCS / "glossary.md").read_text(), re.MULTILINE)
    assert 0 < len({word for word, _ in entries}) == len(entries) <= 25
    for word, sentence in entries:
        assert re.fullmatch(r"[A-Z][^.!?]+\.", sentence), word


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CHANGELOG.md"], ids=lambda path: path.name)
def test_a_page_speaks_the_words_of_the_field(page: Path) -> None:
    assert not re.findall(PRIVATE_WORDS, page.read_text())


def command_lines() -> list[str]:
    """Our commands in all pages, each once: lines of blocks, and code within the text."""
    found: dict[str, None] = {}
    for page in PAGES:
        text = page.read_text()
        lines = [
            line
            for block in re.findall(r"^```(?:sh|bash)?\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
            for line in block.splitlines()
        ]
        prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
        for line in (*lines, *re.findall(r"`([^`]+)`", prose)):
            command = " ".join(re.sub(r"(\s#.*| \.\.\.)$", "", line).split())
            if re.match(r"(torchrun \S+ -m|python -m) harness\.", command):
                found[command] = None
    return sorted(found)


class Parsed(Exception):
    """A command line was read to its end; nothing of it was done."""


@pytest.mark.parametrize("command", command_lines())
def test_every_command_is_one_that_we_have(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module, *words = shlex.split(command.partition(" -m harness.")[2])
    if module in HYDRA_COMMANDS:
        compose_one(module, words)
        return
    read = argparse.ArgumentParser.parse_args

    def parse_only(parser: argparse.ArgumentParser, arguments: list[str]) -> None:
        read(parser, arguments)
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_only)
    with pytest.raises(Parsed):
        PARSERS[module](words)


def compose_one(module: str, words: list[str]) -> None:
    """Compose the first job of a command line and, of the benchmark, build its plan."""
    typed = as_options([word for word in words if word not in ("--multirun", "--help")])
    if module == "cost" and typed and re.fullmatch("[a-z]+", typed[0]):
        typed[0] = f"command={typed[0]}"
    assert "--multirun" in words or not any(one.is_sweep_override() for one in parsed(typed))
    chosen = []
    for one in parsed(typed):
        if not one.is_sweep_override():
            chosen.append(one.input_line)
            continue
        values = list(one.sweep_string_iterator())
        chosen.append(f"{one.key_or_group}={values[0]}")
        if (ROOT / "conf" / one.key_or_group).is_dir():
            names = {name for value in values for name in value.strip("[]").split(",")}
            assert names <= {path.stem for path in (ROOT / "conf" / one.key_or_group).glob("*.yaml")}
    with initialize_config_module("conf", version_base="1.3"):
        config = compose(module, overrides=chosen)
    if module == "bench":
        make_plan(config, chosen)


def parsed(words: list[str]) -> list[Any]:
    return OverridesParser.create().parse_overrides(words)


def test_the_list_of_commands_has_every_entry_point() -> None:
    page = (DOCS / "commands.md").read_text()
    doors = [path.stem for path in ROOT.glob("harness/*.py") if "__main__" in path.read_text()]
    assert len(doors) >= 5
    assert all(f"python -m harness.{door}" in page for door in doors)


def test_completion_knows_groups_and_options(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["specbench", "-sc", "query=bash"])
    monkeypatch.setenv("COMP_LINE", "specbench target=tin")
    monkeypatch.setenv("COMP_POINT", "20")
    assert hydra_app.main(bench) == 0
    assert set(capsys.readouterr().out.split()) >= {"target=tiny", "target=tiny_qwen3"}
