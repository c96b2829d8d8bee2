"""Grid: a dry run tells done from missing, counts what would be measured, and says what it concludes from."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.benchmark.dry_run.survey import notes, size, survey, table
from harness.benchmark.experiment import Experiment
from harness.benchmark.session import Session
from harness.store.run_store import JOURNAL, ResultStore, load_run
from harness.system.console import Console, duration
from harness.target.footprint import cache_bytes_per_token, step_bytes
from tests.benchmark.test_experiment import plan_of

QUICK = ("measure=quick", "decoding=[greedy,sampled]", "+measure.bandwidth_gib=0.01", "max_new_tokens=4")


def test_what_is_measured_is_done_and_what_is_not_is_counted_and_estimated(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, *QUICK)
    before = survey(plan)
    assert [cell["state"] for cell in before] == ["missing", "missing"]
    assert all("every answer reaches the cap" in cell["basis"] for cell in before)
    assert all(cell["seconds"] > 0 for cell in before)
    assert not (tmp_path / "runs").exists()

    session, store = Session(plan, Console()), ResultStore(tmp_path / "runs")
    experiment = Experiment(session, plan.decodings["greedy"])
    folder = experiment.run(store)
    records = load_run(folder).records
    assert before[0]["num_generations"] == len(records)

    greedy, sampled = survey(plan)
    assert (greedy["state"], greedy["seconds"], greedy["run_dir"]) == ("done", 0, str(folder))
    assert (sampled["state"], sampled["run_dir"]) == ("missing", None)
    assert "as stored runs of this target went" in sampled["basis"]
    assert sampled["memory_bytes"] == max(record.peak_memory_bytes or 0 for record in records)
    # Another measurement is another cell.
    for change in ("max_new_tokens=5", "methods.ngram.draft_length=3", "replicate=1", "replicate=next"):
        assert survey(plan_of(tmp_path, *QUICK, change))[0]["state"] == "missing"

    # A run that broke off after its first conversation.
    journal = (folder / JOURNAL).read_bytes().splitlines(keepends=True)
    end = next(place for place, line in enumerate(journal) if b'"finish_block"' in line)
    (folder / JOURNAL).write_bytes(b"".join(journal[: end + 1]))
    partly = survey(plan)[0]
    assert partly["state"] == "partly done"
    assert 0 < partly["num_done"] < partly["num_generations"] == greedy["num_generations"]
    assert survey(plan_of(tmp_path, *QUICK, "replicate=next"))[0]["state"] == "partly done"


def test_the_rule_counts_the_bytes_of_the_model_that_would_be_loaded(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, "ladder=none", "measure=acceptance", "max_new_tokens=10")
    (cell,) = survey(plan)
    model = plan.target.load(print).model
    # Four turns, two arms, once each; batches of four share the reading; 30 % of 10 GB/s.
    assert cell["num_generations"] == 8
    assert cell["seconds"] == pytest.approx(8 * 10 * step_bytes(model) / 3e9 / 4)
    assert cell["memory_bytes"] - 600 * 2**20 == model.num_parameters() * 4 + cache_bytes_per_token(model) * (
        4 * (1024 + 10)
    )


def test_a_model_out_of_reach_has_no_estimate_and_says_why(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, "target=hub", "target.path=./nowhere", "ladder=none")
    (cell,) = survey(plan)
    assert cell["state"] == "missing"
    assert cell["seconds"] is cell["memory_bytes"] is None
    assert "no such folder" in cell["basis"]
    assert table([cell])[1][0][-2:] == ["-", "-"]
    assert "1 whose time is not known" in notes([cell])[0]


def test_times_and_sizes_are_written_for_people() -> None:
    assert [duration(value) for value in (None, 12.4, 90, 3725)] == ["-", "12 s", "2 min", "1 h 2 min"]
    assert [size(value) for value in (None, 1_530_000_000)] == ["-", "1.5 GB"]
