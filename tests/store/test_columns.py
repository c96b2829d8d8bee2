"""Columns and exports: the same numbers whatever they are read from, and none from a stale file."""

from __future__ import annotations

import dataclasses
import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.analysis import metrics
from harness.analysis.summary import pairwise, summarise, summarise_with_pairs
from harness.cli.report_command import main
from harness.store.columns import LOOP_NGRAM, Columns
from harness.store.journal import JOURNAL, CorruptJournal
from harness.store.parquet import COLUMNS, StoredRecords, read_about
from harness.store.records import GenerationRecord, Run, Verdict
from harness.store.run_store import load_run, load_runs
from tests.support.builders import (
    failed_run,
    make_record,
    make_rung,
    sample_records,
    sample_run,
    sample_runs,
    write_runs,
)
from tests.support.journals import more_lines


def same(one: Columns, other: Columns) -> bool:
    return same_parts(vars_of(one), vars_of(other))


def vars_of(columns: Columns) -> dict[str, Any]:
    return {field.name: getattr(columns, field.name) for field in dataclasses.fields(Columns)}


def same_parts(ours: Any, theirs: Any) -> bool:
    assert list(ours) == list(theirs)
    return all(
        same_parts(a, b)
        if isinstance(a, dict)
        else np.array_equal(a, b) and getattr(a, "dtype", None) == getattr(b, "dtype", None)
        for a, b in zip(ours.values(), theirs.values(), strict=True)
    )


def records_of_every_kind() -> list[GenerationRecord]:
    return [
        *sample_records({"ngram": 0.5}, num_prompts=3),
        make_rung("transformers.generate", "c01", 9, 10**15),
        make_record("ngram", "ä | c", (), (), turn=2, sample=1, verdict=None, latency_ns=5),
        make_record("suffix", "c00", verdict=Verdict("tie", 2, 0.5), batch_size=4, timed=False),
        make_record("suffix", "c00", repeat=1, verdict=Verdict("broken", 0, None)),
    ]


def test_an_export_gives_the_columns_that_its_records_give(tmp_path: Path) -> None:
    write_runs(
        [sample_run(), dataclasses.replace(sample_run("b"), records=records_of_every_kind())], tmp_path
    )
    for run in load_runs(tmp_path / "runs"):
        assert isinstance(run.records, StoredRecords)
        records = load_run(Path(run.folder)).records
        assert list(run.records) == records
        assert len(run.records) == len(records)
        assert same(Columns.of(run.records), Columns.of(records))


def test_parts_that_are_joined_keep_their_names_and_are_told_apart() -> None:
    first, second = records_of_every_kind(), sample_records({"suffix": 0.3}, num_prompts=2)
    joined = Columns.join([Columns.of(first), Columns.of(second)])
    assert [joined.arms[arm] for arm in joined.arm] == [r.arm for r in (*first, *second)]
    assert [joined.conversations[c] for c in joined.conversation] == [
        r.conversation for r in (*first, *second)
    ]
    assert joined.run.tolist() == [0] * len(first) + [1] * len(second)
    again = joined.subset(joined.run == 1)
    assert repr(metrics.ledger(again)) == repr(metrics.ledger(second))
    assert again.begins.tolist() == Columns.of(second).begins.tolist()


def test_repeated_grams_are_counted_within_their_own_output() -> None:
    noise = random.Random(0)
    outputs = [[noise.randrange(3) for _ in range(noise.randrange(1, 60))] for _ in range(200)]
    columns = Columns.of([make_rung("x", "c", len(ids), 1, output_ids=ids) for ids in outputs])
    grams = [[tuple(ids[i : i + LOOP_NGRAM]) for i in range(len(ids) - LOOP_NGRAM + 1)] for ids in outputs]
    assert columns.num_grams.tolist() == [len(one) for one in grams]
    assert columns.num_repeated.tolist() == [len(one) - len(Counter(one)) for one in grams]
    assert columns.num_repeated.sum() > 0


def tables_of(results: Path, out: Path) -> dict[str, bytes]:
    status = main(
        ["build", "--results", str(results), "--out", str(out), "--format", "md", "tex", "csv", "html"]
    )
    assert status in (0, 1)
    return {path.name: path.read_bytes() for path in out.iterdir()}


def test_reports_are_the_same_bytes_from_exports_and_from_journals(tmp_path: Path) -> None:
    write_runs([*sample_runs(), sample_run("tiny.smoke.greedy.1", seed=7, created="later")], tmp_path)
    from_exports = tables_of(tmp_path, tmp_path / "one")
    kinds = [type(run.records) for run in load_runs(tmp_path / "runs")]
    assert kinds.count(StoredRecords) == 4
    for export in tmp_path.glob(f"runs/*/{COLUMNS}"):
        export.unlink()
    assert not any(isinstance(run.records, StoredRecords) for run in load_runs(tmp_path / "runs"))
    assert tables_of(tmp_path, tmp_path / "two") == from_exports
    assert len(from_exports) == 5


def written(tmp_path: Path) -> Path:
    write_runs([sample_run()], tmp_path)
    (folder,) = (tmp_path / "runs").iterdir()
    assert read_about(folder) is not None
    return folder


@pytest.mark.parametrize("change", ["longer", "other end", "gone"])
def test_an_export_of_another_journal_is_not_read(change: str, tmp_path: Path) -> None:
    folder = written(tmp_path)
    lines = (folder / JOURNAL).read_bytes().splitlines(keepends=True)
    if change == "longer":
        (folder / JOURNAL).write_bytes(b"".join(lines[:-1]))
        record = make_record("ngram", "zz").to_json()
        more = [("begin_block", "more"), ("record", record), ("finish_block", "more"), ("finished", {})]
        extra = more_lines(folder, *more)
        (folder / JOURNAL).write_bytes(b"".join([*lines[:-1], extra]))
        assert any(record.conversation == "zz" for record in load_runs(tmp_path / "runs")[0].records)
    elif change == "other end":
        later = {**json.loads(lines[-1])["data"], "at": "2000-01-01T00:00:00+00:00"}
        (folder / JOURNAL).write_bytes(b"".join(lines[:-1]))
        end = more_lines(folder, ("finished", later))
        assert len(end) == len(lines[-1])
        (folder / JOURNAL).write_bytes(b"".join([*lines[:-1], end]))
    else:
        (folder / JOURNAL).unlink()
    assert read_about(folder) is None


def test_a_damaged_export_is_told_and_a_file_that_is_none_is_passed_over(tmp_path: Path) -> None:
    folder = written(tmp_path)
    whole = (folder / COLUMNS).read_bytes()
    (folder / COLUMNS).write_bytes(b"\xff" * 2000 + whole[2000:])
    (run,) = load_runs(tmp_path / "runs")
    with pytest.raises(CorruptJournal, match="the journal beside it holds the same records"):
        Columns.of(run.records)
    (folder / COLUMNS).write_bytes(b"no columns")
    assert load_runs(tmp_path / "runs")[0].records == load_run(folder).records


def test_rows_and_pairs_at_once_are_what_each_alone_gives() -> None:
    runs: list[Run] = [*sample_runs(), failed_run()]
    assert repr(summarise_with_pairs(runs)) == repr((summarise(runs), pairwise(runs)))
