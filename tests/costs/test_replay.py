"""Replay by hand: shorter drafts and other batches from a ledger and a table, and never called measured."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from harness.cli import report_command
from harness.config import ConfigError
from harness.costs.grid import Grid
from harness.costs.headroom import run_identity
from harness.costs.replay import Replayed, replay
from harness.costs.table import COSTS, CostTable, DraftingCost
from harness.store.records import GenerationRecord, Run
from tests.support.builders import make_record, make_run, make_table, write_runs

ARMS = {"vanilla": {}, "ngram": {"draft_length": 4}}
ROUND, CALL = 0.25, 0.05
VANILLA = make_record("vanilla", "c00", [0] * 6, [0] * 6)
CHAIN = make_record("ngram", "c00", [3, 0, 1], [4, 0, 2])


def run_of(*records: GenerationRecord) -> Run:
    return make_run([VANILLA, *records], arms=ARMS)


def table_for(run: Run, call: bool = False) -> CostTable:
    axes = {"batch": (1, 4), "context": (100, 500)}
    drafting = DraftingCost(
        settings=ARMS["ngram"],
        round=Grid(axes=axes, values=np.full((2, 2), ROUND)),
        call=Grid(axes={**axes, "tokens": (1, 8)}, values=np.full((2, 2, 2), CALL)) if call else None,
    )
    return replace(make_table(), identity=run_identity(run.manifest), drafters={"ngram": drafting})


def step(batch: int, width: int) -> float:
    """The table's seconds of forward and settling, below its first context."""
    return make_table.seconds(batch, 100, 1 + width) * 1.01


def one(found: list[Replayed], length: int | None, batch: int) -> Replayed:
    (chosen,) = [each for each in found if (each.length, each.batch) == (length, batch)]
    return chosen


def test_as_recorded_it_is_the_tables_prediction() -> None:
    run = run_of(CHAIN)
    found = one(replay(run, table_for(run)), None, 1)
    prefill = CHAIN.prefill_ns * 1e-9
    seconds = prefill + step(1, 4) + step(1, 0) + step(1, 2) + 3 * ROUND
    plain = len(VANILLA.output_ids) / (VANILLA.prefill_ns * 1e-9 + 6 * step(1, 0))
    assert found.tokens_per_s == pytest.approx(len(CHAIN.output_ids) / seconds)
    assert found.speedup == pytest.approx(len(CHAIN.output_ids) / seconds / plain)
    assert found.tau == pytest.approx(7 / 3)


def test_a_cut_chain_keeps_the_least_and_needs_more_rounds() -> None:
    run = run_of(CHAIN)
    found = one(replay(run, table_for(run), [1]), 1, 1)
    # Of 4 + 1 + 2 tokens the cut rounds emit 2 + 1 + 2.
    more = 7 / 5
    seconds = CHAIN.prefill_ns * 1e-9 + more * (step(1, 1) + step(1, 0) + step(1, 1) + 3 * ROUND)
    assert found.tau == pytest.approx(5 / 3)
    assert found.tokens_per_s == pytest.approx(len(CHAIN.output_ids) / seconds)


def test_levels_that_are_cut_spare_calls_of_the_drafters_model() -> None:
    run = run_of(CHAIN)
    slow, fast = (one(replay(run, table_for(run, call), [1]), 1, 1) for call in (False, True))
    tokens = len(CHAIN.output_ids)
    # Three levels of the first round and one of the third.
    assert tokens / slow.tokens_per_s - tokens / fast.tokens_per_s == pytest.approx(7 / 5 * 4 * CALL)


def test_a_batch_is_as_wide_as_the_widest_of_its_drafts() -> None:
    run = run_of(CHAIN)
    found = one(replay(run, table_for(run)), None, 4)
    drafts = [4, 0, 2]
    expected = 0.0
    for own in drafts:
        for a in drafts:
            for b in drafts:
                for c in drafts:
                    expected += step(4, max(own, a, b, c)) / 27
    seconds = CHAIN.prefill_ns * 1e-9 + (expected + 3 * ROUND) / 4
    assert found.tokens_per_s == pytest.approx(len(CHAIN.output_ids) / seconds)


def test_a_tree_is_cut_by_depth_but_charged_for_its_nodes_and_says_so() -> None:
    tree = make_record("ngram", "c00", [2, 1], [7, 7], depth=[3, 3])
    run = run_of(tree)
    cut = one(replay(run, table_for(run), [1]), 1, 1)
    seconds = tree.prefill_ns * 1e-9 + 5 / 4 * 2 * (step(1, 7) + ROUND)
    assert cut.tokens_per_s == pytest.approx(len(tree.output_ids) / seconds)
    assert cut.marks == ("replayed", "tree: nodes not cut")
    assert [each.length for each in replay(run, table_for(run), batches=[1])] == [1, 2, 3, None]


def test_a_drafter_that_is_not_in_the_table_is_refused_with_what_to_type() -> None:
    run = run_of(CHAIN)
    with pytest.raises(ConfigError, match=r"harness\.cost target=tiny method=\[ngram\]"):
        replay(run, replace(table_for(run), drafters={}))


def test_the_command_prints_a_json_line_in_which_everything_is_marked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_of(CHAIN)
    write_runs([run], tmp_path)
    assert report_command.main(["replay", "--results", str(tmp_path)]) == 2
    assert "type python -m harness.cost" in capsys.readouterr().err
    other = replace(table_for(run), identity={**run_identity(run.manifest), "device": {"cpu": "another"}})
    place = other.save(tmp_path / "elsewhere")
    assert report_command.main(["replay", "--results", str(tmp_path), "--costs", str(place)]) == 2
    assert "device.cpu is 'another' there" in capsys.readouterr().err
    table_for(run).save(tmp_path / COSTS)
    assert report_command.main(["replay", "--results", str(tmp_path), "--batch", "1,4", "--length", "2"]) == 0
    told = capsys.readouterr()
    document = json.loads(told.out.splitlines()[-1])["replayed"]
    assert [(line["batch"], line["length"]) for line in document] == [(1, 2), (1, None), (4, 2), (4, None)]
    assert all("replayed" in line["marks"] for line in document)
    assert "not measured" in told.err
