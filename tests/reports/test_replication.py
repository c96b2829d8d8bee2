"""Replication: papers' numbers are found, stand beside ours, and are never taken for ours."""

from __future__ import annotations

import math
import tomllib
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

import conf
from harness.analysis import published
from harness.analysis.published import FOLDER, load_papers
from harness.analysis.summary import summarise
from harness.cli.report_command import main
from harness.config import ConfigError
from harness.reports import replication
from harness.store.records import Run
from tests.support.builders import broken_run, make_run, sample_records, write_runs

ROOT = Path(__file__).parents[2]

CONF = Path(conf.__file__).parent
OFFICIAL = {"sha256": "1", "known": {"origin": "official", "settings": "total_token 60, depth 7, top_k 10"}}
THIRD = {"sha256": "2", "known": {"origin": "third-party"}}
TREE = {"total_token": 60, "depth": 7, "top_k": 10}


def measured(head: dict[str, Any] | None, run_id: str = "r", **changes: Any) -> Run:
    """LLaMA-3.1-8B on MT-bench with EAGLE-3 and, slower, EAGLE-2."""
    arm = {"tree": TREE, **({"card": head} if head else {})}
    given: dict[str, Any] = {
        "target": "llama31_8b",
        "task": "mt_bench",
        "arms": {"vanilla": {}, "eagle2": arm, "eagle3": arm},
        "prompts": {"num_conversations": 16},
        "provenance": {"device": {"name": "A card"}},
        "config": {"decoding": {"max_new_tokens": 512}},
        "card": {"source": "hub", "dtype": "float16"},
    }
    return make_run(sample_records({"eagle2": 0.5, "eagle3": 0.7}), run_id, **{**given, **changes})


def lines_of(run: Run, paper: str = "eagle3") -> dict[str, replication.Line]:
    (found,) = (one for one in load_papers() if one.name == paper)
    return {line.row.method: line for line in replication.replicate(found, summarise(run), [run])}


def test_theirs_stand_beside_ours_with_the_ratio_inside_each() -> None:
    lines = lines_of(measured(OFFICIAL))
    assert set(lines) == {"eagle2", "eagle3"}
    # EAGLE-3, Table 1, LLaMA-3.1-8B on MT-bench at T = 0.
    assert lines["eagle3"].theirs[1:] == (4.40, 6.13)
    assert lines["eagle2"].theirs[1:] == (3.16, 4.05)
    assert lines["eagle2"].their_ratio == pytest.approx(3.16 / 4.40)
    ours = {method: line.row.speedup for method, line in lines.items()}
    assert lines["eagle2"].our_ratio == pytest.approx(ours["eagle2"] / ours["eagle3"])
    assert lines["eagle3"].their_ratio == lines["eagle3"].our_ratio == 1


def test_only_makers_weights_are_a_replication() -> None:
    marks = {
        name: (lines_of(run)["eagle3"].replication, lines_of(run)["eagle3"].marks[0])
        for name, run in {
            "official": measured(OFFICIAL),
            "third": measured(THIRD),
            "unknown": measured({"sha256": "3"}),
            "random": measured(OFFICIAL, card={"source": "random (seed 0)"}),
        }.items()
    }
    assert marks == {
        "official": (True, "replication"),
        "third": (False, "third-party head"),
        "unknown": (False, "unknown head"),
        "random": (False, "random target"),
    }


def test_settings_that_differ_are_told_theirs_first_and_equal_ones_are_not() -> None:
    told = lines_of(measured(OFFICIAL))["eagle3"].differs
    assert "num_prompts: 80 / 16" in told
    assert any(one.startswith("baseline: the authors' own eager loop / ") for one in told)
    assert not any(one.startswith(("dtype", "max_new_tokens", "tree")) for one in told)
    other = measured(
        OFFICIAL, card={"source": "hub", "dtype": "float32"}, config={"decoding": {"max_new_tokens": 64}}
    )
    assert {"dtype: float16 / float32", "max_new_tokens: 512 / 64"} <= set(lines_of(other)["eagle3"].differs)


def test_a_paper_without_our_cells_has_no_section_and_a_broken_row_no_line() -> None:
    run = broken_run()
    assert replication.markdown(load_papers(), summarise(run), [run]) == ""
    assert lines_of(measured(OFFICIAL, temperature=0.7)) == {}


def test_every_spelling_of_ours_is_an_option_of_conf() -> None:
    names = OmegaConf.load(FOLDER / "papers.yaml")
    for group, kind in (("target", "targets"), ("task", "tasks"), ("method", "methods")):
        assert set(names[kind]) <= {path.stem for path in (CONF / group).glob("*.yaml")}


def test_every_paper_has_its_source_and_numbers_that_can_be() -> None:
    papers = load_papers()
    assert {path.stem for path in FOLDER.glob("*.csv")} == {paper.name for paper in papers}
    for paper in papers:
        assert paper.source
        assert paper.cautions
        assert paper.cells
        for values in paper.cells.values():
            for value in values.values():
                assert all(number is None or 0.4 < number < 20 for number in value[1:])


def test_the_report_writes_the_tables_and_takes_them_away(tmp_path: Path) -> None:
    write_runs([measured(OFFICIAL)], tmp_path)
    tables = tmp_path / "tables"
    assert main(["build", "--results", str(tmp_path)]) == 0
    text = (tables / "replication.md").read_text()
    assert "## EAGLE-3" in text
    assert "## GTO" in text
    assert "| 4.40x |" in text
    assert "compare the column" in text
    header, *lines = (tables / "replication.csv").read_text().splitlines()
    assert header.startswith("paper,source,target")
    assert any(line.startswith("EAGLE-3,") and ",True," in line for line in lines)
    # The rows of our own report know nothing of them.
    assert "their_" not in (tables / "rows.csv").read_text()
    assert main(["build", "--results", str(tmp_path), "--only", "r"]) == 0
    write_runs([measured(None, "s", target="other")], tmp_path)
    assert main(["build", "--results", str(tmp_path), "--only", "s"]) == 0
    assert not (tables / "replication.md").exists()


def test_a_csv_that_nobody_described_and_a_row_without_a_number_are_told(tmp_path: Path) -> None:
    (tmp_path / "papers.yaml").write_text("papers: {}\ntargets: {}\ntasks: {}\nmethods: {}\n")
    assert load_papers(tmp_path) == []
    (tmp_path / "new.csv").write_text("table,model\n")
    with pytest.raises(ConfigError, match="name its source"):
        load_papers(tmp_path)
    (tmp_path / "papers.yaml").write_text(
        "papers: {new: {title: N, source: s, setting: {}, cautions: []}}\n"
        "targets: {}\ntasks: {}\nmethods: {}\n"
    )
    (tmp_path / "new.csv").write_text("table,model,metric\nT,m,speedup\n")
    with pytest.raises(ConfigError, match=r"new\.csv:2: needs task, method"):
        load_papers(tmp_path)


def test_what_a_paper_does_not_say_is_not_known() -> None:
    (paper,) = (one for one in load_papers() if one.name == "dspark")
    assert all(value.speedup is None for values in paper.cells.values() for value in values.values())
    run = measured(THIRD, target="qwen3_8b", task="gsm8k", decoding="sampled", temperature=1.0)
    line = replication.table([paper], summarise(run), [run])
    assert all(math.isnan(one["their_speedup"]) and math.isnan(one["their_ratio"]) for one in line)


def scaled(scenario: str, temperature: float, task: str = "spectts") -> Run:
    """Qwen3-8B with two of SpecTTS-Bench's methods."""
    return measured(
        None,
        target="qwen3_8b",
        task=task,
        scenario=scenario,
        temperature=temperature,
        arms={"vanilla": {}, "eagle2": {}, "eagle3": {}},
    )


def test_numbers_of_a_scenario_stand_beside_rows_of_that_scenario_alone() -> None:
    (paper,) = (one for one in load_papers() if one.name == "spectts")

    def theirs(run: Run) -> dict[str, float | None]:
        lines = replication.replicate(paper, summarise(run), [run])
        return {f"{line.row.method}, {line.place.task}": line.theirs.speedup for line in lines}

    assert theirs(scaled("multi_round", 0.0)) == {"eagle3, spectts": 2.91}
    assert theirs(scaled("multi_round", 0.0, "aime24")) == {"eagle3, aime24": 2.80}
    for other in (scaled("multi_turn", 0.0), scaled("best_of_n", 0.0), scaled("multi_round", 1.0)):
        assert theirs(other) == {}
    assert replication.replicate(paper, summarise(measured(OFFICIAL, scenario="multi_round")), []) == []


def test_a_paper_may_have_a_reference_of_its_own_and_both_speedups_are_printed() -> None:
    (paper,) = (one for one in load_papers() if one.name == "racer")
    assert paper.reference == "racer"
    run = scaled("single", 0.0, "humaneval")
    (line,) = replication.table([paper], summarise(run), [run])
    assert line["their_ratio"] == pytest.approx(2.44 / 2.24)
    row = next(row for row in summarise(run) if row.method == "eagle3")
    assert line["our_speedup_mean_of_rates"] == row.speedup_mean_of_rates != row.speedup
    assert "| our mean of rates |" in replication.markdown([paper], summarise(run), [run])


@pytest.mark.parametrize(
    ("experiment", "paper", "methods"),
    [
        ("gto_table1", "gto", {"eagle3", "gto"}),
        ("matched_heads", "dspark", {"eagle3_chain", "dflash", "dspark"}),
        # The papers' numbers could not be read, or name no task.
        ("fasteagle", None, set()),
        ("specblock", None, set()),
    ],
)
def test_every_cell_of_an_experiment_has_published_numbers_where_there_are_any(
    experiment: str, paper: str | None, methods: set[str]
) -> None:
    file: Any = OmegaConf.load(CONF / "experiment" / f"{experiment}.yaml")
    swept = file.hydra.sweeper.params
    cells = [
        {(place.target, place.task, place.temperature): set(values) for place, values in one.cells.items()}
        for one in load_papers()
        if one.name == paper
    ]
    temperatures = [1.0] if experiment == "matched_heads" else [0.0, 1.0]
    for target in swept.target.split(","):
        for task in swept.task.split(","):
            for temperature in temperatures:
                assert all(methods <= known[target, task, temperature] for known in cells)
    assert bool(cells) == bool(methods)


def test_matched_heads_stand_beside_the_papers() -> None:
    shares = {"eagle3_chain": 0.5, "dflash": 0.6, "dspark": 0.7}
    run = make_run(
        sample_records(shares),
        "r",
        target="qwen3_8b",
        task="gsm8k",
        temperature=1.0,
        arms={"vanilla": {}, **{name: {} for name in shares}},
    )
    lines = lines_of(run, "dspark")
    assert set(lines) == set(shares)
    assert lines["eagle3_chain"].theirs.tau == 5.30
    assert all(line.theirs.tau for line in lines.values())


def test_an_installed_package_has_the_published_tables() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    (copied,) = project["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"].items()
    assert tuple(map(ROOT.joinpath, copied)) == (FOLDER, published.PACKAGED)


def test_a_report_without_published_tables_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_runs([measured(None, "s", target="other")], tmp_path)
    monkeypatch.setattr("harness.reports.build.load_papers", list)
    assert main(["build", "--results", str(tmp_path), "--format", "csv"]) == 0
    assert "no published tables" in capsys.readouterr().err
