"""Report: from the store alone, without torch, the same bytes every time; mistakes told in words."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

from harness.cli.report_command import main
from harness.store.records import Run
from tests.support.builders import broken_run, failed_run, sample_run, sample_runs, write_runs

ROOT = Path(__file__).parents[2]
TEXTS = {"report.md", "report.tex", "rows.csv", "pairs.csv"}


def build(results: Path, *more: str) -> int:
    return main(["build", "--results", str(results), *more])


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def on_other_device(run: Run) -> Run:
    return dataclasses.replace(
        run, manifest=dataclasses.replace(run.manifest, provenance={"packages": {"torch": "2.11.0"}})
    )


def test_a_second_build_changes_no_byte(tmp_path: Path) -> None:
    write_runs(sample_runs(), tmp_path)
    build(tmp_path)
    first = contents(tmp_path / "tables")
    build(tmp_path, "--out", str(tmp_path / "again"))
    build(tmp_path)
    assert {name for name in first if "/" not in name} == TEXTS
    assert sum(name.startswith("figures/") for name in first) == 18
    assert contents(tmp_path / "tables") == contents(tmp_path / "again") == first


def test_neither_torch_nor_transformers_nor_wandb_is_imported(tmp_path: Path) -> None:
    write_runs([sample_run()], tmp_path)
    script = (
        "import sys; from harness.cli.report_command import main; status = main(sys.argv[1:]);"
        "print(status, {'torch', 'transformers', 'wandb', 'datasets'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, "build", "--results", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "0 set()"


def test_the_command_writes_below_results_and_says_so_on_stderr(tmp_path: Path) -> None:
    write_runs([sample_run()], tmp_path / "results")
    done = subprocess.run(
        [sys.executable, "-m", "harness.report", "build"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == ""
    for name in TEXTS:
        assert (tmp_path / "results" / "tables" / name).is_file()
        assert f"wrote results/tables/{name}" in done.stderr


@pytest.mark.parametrize(
    ("runs", "status"), [([sample_run()], 0), ([sample_run(), failed_run()], 1), ([broken_run()], 1)]
)
def test_the_exit_status_tells_of_broken_and_failed_rows(
    tmp_path: Path, runs: list[Run], status: int
) -> None:
    write_runs(runs, tmp_path)
    assert build(tmp_path) == status


def test_mixed_runs_are_refused_and_footnoted_when_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_runs([sample_run("r1"), on_other_device(sample_run("r2"))], tmp_path)
    assert build(tmp_path) == 2
    assert 'packages.torch: "2.13.0" in r1, "2.11.0" in r2' in capsys.readouterr().err
    assert not (tmp_path / "tables").exists()
    assert build(tmp_path, "--allow-mixed") == 0
    text = (tmp_path / "tables" / "report.md").read_text()
    assert "ngram [a]" in text
    assert 'b: packages.torch = "2.11.0"' in text


def test_an_ordinary_store_builds(tmp_path: Path) -> None:
    """Two profiles of other settings, and two draft lengths of one method."""
    quick, acceptance = (
        sample_run(profile, profile=profile, provenance={"device": {"name": profile}})
        for profile in ("quick", "acceptance")
    )
    lengths = [
        sample_run(f"r{n}", arms={"vanilla": {}, "ngram": {"draft_length": n}, "suffix": {}}) for n in (4, 8)
    ]
    write_runs([quick, acceptance, *lengths], tmp_path)
    assert build(tmp_path) == 0
    text = (tmp_path / "tables" / "report.md").read_text()
    assert "ngram [a]" in text
    assert "b: method[tiny, ngram].draft\\_length = 8" in text
    assert text.count("## tiny") == 3


def test_a_failed_cell_beside_a_measured_one_is_shown_and_fails_the_report(tmp_path: Path) -> None:
    measured = sample_run(task="humaneval", overrides=["methods.ngram.draft_length=4"])
    write_runs([failed_run(), measured], tmp_path)
    assert build(tmp_path) == 1
    for name in ("report.md", "report.tex"):
        assert "no room" in (tmp_path / "tables" / name).read_text()


def test_only_chooses_runs_and_stale_figures_go(tmp_path: Path) -> None:
    write_runs(sample_runs(), tmp_path)
    figures = tmp_path / "tables" / "figures"
    build(tmp_path)
    (figures / "mine.png").write_bytes(b"kept")
    assert build(tmp_path, "--only", "*.smoke.greedy.*") == 0
    assert "humaneval" not in (tmp_path / "tables" / "report.md").read_text()
    assert {path.name.split("-")[0] for path in figures.iterdir()} == {"tiny.greedy", "mine.png"}


@pytest.mark.parametrize(
    ("prepare", "arguments", "message"),
    [
        (False, [], "no such folder"),
        (True, ["--only", "nothing*"], "matches none of the 1 runs"),
    ],
)
def test_mistakes_are_told_in_words(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], prepare: bool, arguments: list[str], message: str
) -> None:
    if prepare:
        write_runs([sample_run()], tmp_path)
    assert build(tmp_path, *arguments) == 2
    told = capsys.readouterr().err
    assert message in told
    assert "Traceback" not in told


@pytest.mark.parametrize("arguments", [[], ["bild"], ["build", "--onyl", "x"]])
def test_a_wrong_command_line_ends_in_status_two(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2


def test_a_damaged_journal_is_reported_and_not_passed_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_runs([sample_run()], tmp_path)
    journal = next(tmp_path.rglob("journal.jsonl"))
    lines = journal.read_bytes().split(b"\n")
    journal.write_bytes(b"\n".join([lines[0], b"{}", *lines[2:]]))
    assert build(tmp_path) == 2
    assert "journal.jsonl" in capsys.readouterr().err
