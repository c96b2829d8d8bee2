"""Categories: together they are the run, and each has rows of its own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from harness.analysis.parts.by_category import by_category
from harness.analysis.summary import summarise
from harness.cli.report_command import main
from harness.store.records import Run
from tests.support.builders import failed_run, sample_run, write_runs

_KINDS = ("code", "math")


def mixed_run() -> Run:
    """Prompts of two kinds in turn, of which the methods are slower on the first."""
    run = sample_run()
    names = sorted({record.conversation for record in run.records})
    kind = {name: _KINDS[number % 2] for number, name in enumerate(names)}
    records = [
        replace(
            record,
            category=kind[record.conversation],
            total_ns=record.total_ns
            * (2 if kind[record.conversation] == "code" and record.arm != "vanilla" else 1),
        )
        for record in run.records
    ]
    return replace(run, records=records)


def test_categories_divide_the_records() -> None:
    run = mixed_run()
    parts = by_category(run)
    assert [part.manifest.cell.task for part in parts] == ["smoke: code", "smoke: math"]
    assert sorted(map(repr, run.records)) == sorted(repr(one) for part in parts for one in part.records)
    assert [null.conversation for part in parts for null in part.nulls] == ["c00", "c01"]
    assert len({part.manifest.run_id for part in parts}) == 2


def test_a_slow_category_shows_in_its_own_row() -> None:
    rows = summarise(by_category(mixed_run()))
    found = {row.where.task: row for row in rows if row.method == "ngram"}
    assert found["smoke: code"].speedup == pytest.approx(found["smoke: math"].speedup / 2, rel=0.1)
    assert found["smoke: code"].num_prompts + found["smoke: math"].num_prompts == 16


def test_a_run_without_categories_or_records_stays_as_it_is() -> None:
    plain = replace(sample_run(), records=[replace(one, category="") for one in sample_run().records])
    assert [part.manifest.cell.task for part in by_category(plain)] == ["smoke"]
    assert by_category(failed_run()) == [failed_run()]


def test_the_report_has_a_table_with_both(tmp_path: Path) -> None:
    write_runs([mixed_run()], tmp_path)
    assert main(["build", "--results", str(tmp_path), "--by-category", "--format", "md", "tex", "html"]) == 0
    for name in ("report.md", "report.tex", "report.html"):
        text = (tmp_path / "tables" / name).read_text()
        assert "smoke: code" in text
        assert "smoke: math" in text
