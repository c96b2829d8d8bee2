"""What `python -m scripts.faults` counts is there: a sound store has no fault, and each kind is counted."""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from harness.store.run_store import RECORDS, load_run
from scripts.faults import child, damage, stores, writers
from scripts.faults.made_up import NUM_BLOCKS, attempts, expected, expected_loads, write_run
from scripts.faults.tally import Tally
from tests.support.journals import Entries, entries_of, forge


@pytest.fixture
def tally() -> Tally:
    return Tally("a part")


def test_a_run_whose_writer_starts_again_holds_what_is_expected(tmp_path: Path, tally: Tally) -> None:
    def stop(line: str) -> None:
        if line == "c1":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_run(tmp_path / "runs", "a", stop)
    write_run(tmp_path / "runs", "a")
    writers._compare(tally, run := load_run(tmp_path / "runs" / "a"), "a")
    assert not tally.num_faults, tally.notes
    assert (run.records, run.loads) == (expected("a"), expected_loads())


def test_a_made_up_run_holds_every_kind_of_attempt(tmp_path: Path) -> None:
    write_run(tmp_path, "a")
    entries = entries_of(tmp_path / "a")
    begun = [data["counts"] for kind, data in entries if kind == "begin_attempt"]
    assert {True, False} == set(begun)
    assert sum(kind == "load" for kind, _ in entries) == sum(len(attempts(n)) for n in range(NUM_BLOCKS))


@pytest.mark.parametrize(("num_copies", "kind"), [(0, "lost"), (2, "doubled")])
def test_a_measurement_that_does_not_count_is_looked_for_too(
    tmp_path: Path, tally: Tally, num_copies: int, kind: str
) -> None:
    def copy_the_first(entries: Entries) -> None:
        begin, end = (
            next(number for number, entry in enumerate(entries) if entry[0] == name)
            for name in ("begin_attempt", "finish_block")
        )
        entries[begin : end + 1] = num_copies * entries[begin : end + 1]

    write_run(tmp_path, "a")
    writers._compare_attempts(tally, tmp_path / "a", "a")
    assert not tally.num_faults, tally.notes
    forge(tmp_path / "a", copy_the_first)
    writers._compare_attempts(tally, tmp_path / "a", "a")
    assert tally.notes[0] == f"{kind}: a: measurement 0 of c0 is there {num_copies} times"


@pytest.mark.parametrize(("kind", "place"), [("record", "conversation"), ("load", "block")])
def test_what_a_run_lacks_is_counted(tmp_path: Path, tally: Tally, kind: str, place: str) -> None:
    def lose_one(entries: Entries) -> None:
        entries.pop()  # which says how many records there are
        entries.remove(next(one for one in entries if one[0] == kind and one[1][place] == "c2"))

    write_run(tmp_path, "a")
    forge(tmp_path / "a", lose_one)
    writers._compare(tally, load_run(tmp_path / "a"), "a")
    assert tally.notes == ["lost: a is not finished", "lost: 1 records and loads of a"]


def test_a_record_that_is_there_twice_is_counted(tmp_path: Path, tally: Tally) -> None:
    write_run(tmp_path, "a")
    run = load_run(tmp_path / "a")
    writers._compare(tally, replace(run, records=[*run.records, run.records[0]]), "a")
    assert (tally.lost, tally.doubled) == (0, 1)


def _raise(_: child.Send) -> None:
    raise KeyError("gone")


@pytest.mark.parametrize(("work", "kind"), [(_raise, "tracebacks"), (lambda _: time.sleep(9), "hangs")])
def test_a_child_that_fails_or_hangs_is_counted(
    tally: Tally, work: child.Work, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(child, "LIMIT_S", 0.3)
    assert child.run_to_end(tally, work, "here") == []
    assert (getattr(tally, kind), tally.num_faults) == (1, 1)


def test_a_child_that_ended_before_its_kill_is_not_counted_as_killed(tally: Tally) -> None:
    assert child.run_and_kill(tally, lambda send: send("c0"), 9, "here") == ["c0"]
    assert (tally.tried, tally.how) == (0, {"ended before": 1})


def _forge_a_time(root: Path) -> None:
    def edit(entries: Entries) -> None:
        for kind, data in entries:
            if kind == "record":
                data["total_ns"] += 1

    forge(root / "a", edit)
    (root / "a" / RECORDS).unlink(missing_ok=True)


@pytest.mark.parametrize(
    ("harm", "kind"),
    [
        (_forge_a_time, "read as sound"),
        (lambda root: (root.parents[1] / "new").touch(), "outside was written"),
    ],
)
def test_damage_that_no_command_noticed_is_counted(
    tmp_path: Path, harm: Callable[[Path], None], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only a forger who computes all links again gets so far; the script does not know of this one."""

    def apply(root: Path, _: random.Random) -> damage.Damage:
        harm(root)
        return damage.Damage("made here", "")

    monkeypatch.setattr(damage, "apply", apply)
    monkeypatch.setattr(stores, "_copy_some", _copy_all)
    found = stores.stores(tmp_path, 1, random.Random(0))
    assert (found.tried, found.survived, found.unnoticed) == (1, 0, 1)
    assert kind in found.notes[0]


def _copy_all(base: Path, store: Path, _: random.Random) -> None:
    shutil.copytree(base, store / "results")
    (store / "outside").write_text("mine")
