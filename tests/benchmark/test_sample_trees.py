"""Exhibits: true to the ledger, bounded, read back; stores that have none still read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from harness.benchmark import sample_trees
from harness.benchmark.sample_trees import chosen_rounds, piece_reader
from harness.store.integrity.shapes import read_json
from harness.store.records import Exhibit, GenerationRecord, Run
from harness.store.run_store import load_run
from harness.target.random_target import byte_tokenizer
from tests.benchmark.test_experiment import measured, plan_of
from tests.support.builders import make_record, make_run, write_runs


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("run")
    trees = ["method=[ngram,eagle2]", "methods.eagle2.head=random", "max_new_tokens=30"]
    return load_run(measured(plan_of(folder, "measure=acceptance", *trees), folder))


def record_of(run: Run, one: Exhibit) -> GenerationRecord:
    place = (one.arm, one.conversation, one.turn, 0, 0)
    (found,) = [r for r in run.records if (r.arm, r.conversation, r.turn, r.sample, r.repeat) == place]
    return found


def test_every_arm_turn_and_early_conversation_has_one(run: Run) -> None:
    assert len(run.exhibits) == 3 * 4
    assert {one.prompt for one in run.exhibits} >= {"and three", "seven"}


def test_trees_agree_with_the_ledger_and_kept_nodes_are_a_path_of_the_answer(run: Run) -> None:
    num_branching = 0
    for one in run.exhibits:
        record = record_of(run, one)
        for tree in one.trees:
            assert len(tree.tokens) == len(tree.parents) == record.drafted[tree.round]
            assert len(tree.kept) == record.accepted[tree.round]
            start = 1 + sum(record.emitted[: tree.round])
            emitted = record.output_ids[start : start + record.emitted[tree.round]]
            path = [tree.tokens[node] for node in tree.kept]
            assert path[: len(emitted)] == emitted[: len(path)]
            assert [tree.parents[node] for node in tree.kept] == [-1, *tree.kept][: len(tree.kept)]
            num_branching += tree.parents != list(range(-1, len(tree.parents) - 1))
    assert num_branching > 0


def test_every_token_that_can_be_shown_has_a_text(run: Run) -> None:
    for one in run.exhibits:
        shown = {*record_of(run, one).output_ids, *(token for tree in one.trees for token in tree.tokens)}
        assert shown == set(one.pieces)
        assert all(one.pieces.values())


def test_confidence_is_kept_where_the_drafter_gives_it(run: Run) -> None:
    eagle = [tree for one in run.exhibits if one.arm == "eagle2" for tree in one.trees]
    assert eagle
    assert all(len(tree.confidence) == len(tree.tokens) for tree in eagle)
    assert all(not tree.confidence for one in run.exhibits if one.arm == "ngram" for tree in one.trees)


@pytest.mark.parametrize("num_rounds", [0, 1, 12, 13, 500])
def test_rounds_are_few_spread_and_none_is_empty_or_huge(num_rounds: int) -> None:
    drafted = [(5, 0, sample_trees.MAX_NODES + 1)[number % 3] for number in range(3 * num_rounds)]
    rounds = chosen_rounds(drafted)
    assert len(rounds) == min(num_rounds, sample_trees.MAX_TREES)
    assert rounds == sorted(set(rounds))
    assert all(drafted[number] == 5 for number in rounds)
    if num_rounds:
        assert (rounds[0], rounds[-1]) == (0, 3 * (num_rounds - 1))


def test_a_piece_is_text_or_its_bytes_and_never_empty() -> None:
    tokenizer = byte_tokenizer(259)
    piece = piece_reader(tokenizer)
    texts = {piece(token) for token in range(259)}
    assert {"a", " ", "\n", "<|im_end|>", r"\xe2"} <= texts
    assert len(texts) == 259


def test_what_is_written_is_read_back_and_the_first_version_still_reads(tmp_path: Path, run: Run) -> None:
    written = [json.dumps(one.to_json()).encode() for one in run.exhibits]
    assert [read_json(Exhibit, text) for text in written] == run.exhibits
    write_runs([make_run([make_record("vanilla", accepted=[0], drafted=[0])], "old")], tmp_path)
    manifest = tmp_path / "runs" / "old" / "manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "schema_version": 1}))
    old = load_run(manifest.parent)
    assert (old.manifest.schema_version, len(old.records), old.exhibits) == (1, 1, [])
