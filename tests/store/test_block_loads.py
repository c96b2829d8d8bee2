"""The load of blocks in the store: which measurement counts, what stays of the others, and older stores."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from harness.store.integrity.shapes import read_json
from harness.store.journal import JOURNAL, RunWriter, read_journal
from harness.store.parquet import COLUMNS, read_about
from harness.store.records import BlockLoad
from harness.store.run_store import MANIFEST, ResultStore, load_run, load_runs
from tests.store.test_run_store import make_manifest, make_record

DISTURBED = BlockLoad(block="a", wall_s=20.0, others_share=0.31, causes={"others": 0.31})
QUIET = BlockLoad(block="a", wall_s=18.0, others_share=0.0, gpu_sm_mhz=(1980, 2010), gpu_slowdowns=("heat",))
VOID = BlockLoad(block="a", wall_s=35.0, num_stops=1, void="the process was stopped for 15 s")


def write_attempt(run: RunWriter, load: BlockLoad, repeat: int, counts: bool | None = None) -> None:
    """One measurement of a block, which its repeat tells apart; counts: None begins it as a first one."""
    if counts is None:
        run.begin_block(load.block)
    else:
        run.begin_attempt(load.block, counts)
    run.write_record(make_record(load.block, repeat=repeat))
    run.write_load(load)
    run.finish_block(load.block)


def repeats_and_loads(folder: Path) -> tuple[list[int], list[BlockLoad]]:
    run = load_run(folder)
    return [record.repeat for record in run.records], run.loads


def test_a_second_measurement_takes_the_place_of_the_first_and_both_stay_in_the_journal(
    tmp_path: Path,
) -> None:
    with ResultStore(tmp_path).open_run(make_manifest()) as run:
        write_attempt(run, DISTURBED, repeat=0)
        write_attempt(run, QUIET, repeat=1, counts=True)
        assert run.loads("a") == [DISTURBED, QUIET]
        run.finish()
    assert repeats_and_loads(run.folder) == ([1], [QUIET])
    journal = read_journal(run.folder / JOURNAL, run.manifest)
    assert [(block.load, [one.repeat for one in block.records]) for block in journal.set_aside] == [
        (DISTURBED, [0])
    ]
    (exported,) = load_runs(tmp_path)
    assert exported.loads == [QUIET]
    assert [record.repeat for record in exported.records] == [1]


def test_a_second_measurement_that_does_not_count_leaves_the_first(tmp_path: Path) -> None:
    with ResultStore(tmp_path).open_run(make_manifest()) as run:
        write_attempt(run, QUIET, repeat=0)
        write_attempt(run, DISTURBED, repeat=1, counts=False)
    assert repeats_and_loads(run.folder) == ([0], [QUIET])


def test_a_void_measurement_leaves_its_block_to_be_measured(tmp_path: Path) -> None:
    with ResultStore(tmp_path).open_run(make_manifest()) as run:
        write_attempt(run, VOID, repeat=0, counts=False)
        assert run.finished_blocks == set()
    assert repeats_and_loads(run.folder) == ([], [])
    with ResultStore(tmp_path).open_run(make_manifest()) as run:
        assert run.loads("a") == [VOID]
        write_attempt(run, QUIET, repeat=1)
    assert repeats_and_loads(run.folder) == ([1], [QUIET])


def test_a_crash_within_the_second_measurement_leaves_the_first(tmp_path: Path) -> None:
    with ResultStore(tmp_path).open_run(make_manifest()) as run:
        write_attempt(run, DISTURBED, repeat=0)
        run.begin_attempt("a", counts=True)
        run.write_record(make_record("a", repeat=1))
    with ResultStore(tmp_path).open_run(make_manifest()) as run:
        run.finish()
    assert repeats_and_loads(run.folder) == ([0], [DISTURBED])


def test_a_store_without_loads_is_read_and_knows_none(tmp_path: Path) -> None:
    with ResultStore(tmp_path).open_run(make_manifest()) as run:
        run.begin_block("a")
        run.write_record(make_record("a"))
        run.finish_block("a")
        run.finish()
    manifest = run.folder / MANIFEST
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "schema_version": 2}))
    about = read_about(run.folder)
    assert about is not None
    old = about.to_json()
    del old["loads"]
    assert read_json(type(about), json.dumps(old).encode()) == about
    assert load_runs(tmp_path)[0].loads == []
    (run.folder / COLUMNS).unlink()
    assert load_runs(tmp_path)[0].loads == []


def test_loads_survive_json() -> None:
    for load in (DISTURBED, QUIET, VOID):
        assert read_json(BlockLoad, json.dumps(load.to_json()).encode()) == load


def test_a_load_outside_a_block_is_a_fault(tmp_path: Path) -> None:
    with (
        ResultStore(tmp_path).open_run(make_manifest()) as run,
        pytest.raises(ValueError, match="outside a block"),
    ):
        run.write_load(QUIET)
