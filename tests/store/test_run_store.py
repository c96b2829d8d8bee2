"""The store loses nothing, repeats nothing and hides nothing."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from harness.config import ConfigError
from harness.store.journal import CorruptJournal, RunWriter
from harness.store.records import Failure, GenerationRecord, NullReplay, Probe, RunManifest, Verdict
from harness.store.run_store import ResultStore, load_run, load_runs
from harness.store.write_lock import RunBusy
from tests.support import builders
from tests.support.journals import more_lines

ROOT = Path(__file__).parents[2]
CELL = replace(builders.CELL, profile="quick")


def make_manifest(run_id: str = "tiny.smoke.greedy.0123456789", **changes: Any) -> RunManifest:
    given: dict[str, Any] = {
        "run_id": run_id,
        "cell": CELL,
        "arms": {"vanilla": {"scope": "conversation"}, "ngram": {"scope": "conversation"}},
        "rungs": [],
        "config": {"seeds": [0]},
        "overrides": [],
        "target": {"source": "test"},
        "prompts": {"count": 3, "hash": "abc"},
        "provenance": {},
    }
    return RunManifest(**{**given, **changes})


def make_record(conversation: str, arm: str = "ngram", repeat: int = 0) -> GenerationRecord:
    return GenerationRecord(
        arm=arm,
        conversation=conversation,
        category="chat",
        repeat=repeat,
        prompt_hash="p",
        num_prompt_tokens=4,
        output_ids=[5, 6, 7, 8],
        stop="cap",
        drafted=[3, 0],
        depth=[3, 0],
        accepted=[1, 0],
        emitted=[2, 1],
        draft_ns=[10, 11],
        verify_ns=[20, 21],
        accept_ns=[1, 1],
        commit_ns=[2, 2],
        total_ns=1000 + repeat,
        verdict=Verdict("tie", 2, 0.125),
    )


def write_block(run: RunWriter, conversation: str) -> None:
    run.begin_block(conversation)
    for arm in ("vanilla", "ngram"):
        run.write_record(make_record(conversation, arm))
    run.write_null(NullReplay(conversation, 4, 0))
    run.finish_block(conversation)


def start(script: str, *arguments: object) -> subprocess.Popen[str]:
    """Another process that has this module's helpers; what it prints can be read line by line."""
    head = "import sys, time\nfrom pathlib import Path\nfrom tests.store.test_run_store import *\n"
    path = str(ROOT)
    return subprocess.Popen(
        [sys.executable, "-c", head + textwrap.dedent(script), *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )


def test_everything_written_is_read_back(tmp_path: Path) -> None:
    with ResultStore(tmp_path).open_run(make_manifest()) as opened:
        opened.write_probe(Probe(1e10, 55.5))
        write_block(opened, "a")
        opened.begin_block("b")
        opened.write_record(make_record("b"))
        opened.write_failure(Failure("out-of-memory", "suffix, b", "no room"))
        opened.finish_block("b")
        opened.finish()
    run = load_run(opened.folder)
    assert run.manifest == make_manifest()
    assert run.records == [make_record("a", "vanilla"), make_record("a", "ngram"), make_record("b")]
    assert run.nulls == [NullReplay("a", 4, 0)]
    assert run.probes == [Probe(1e10, 55.5)]
    assert run.failures == [Failure("out-of-memory", "suffix, b", "no room")]
    assert run.finished


def test_the_manifest_is_there_before_any_record(tmp_path: Path) -> None:
    with ResultStore(tmp_path).open_run(make_manifest()) as opened:
        assert json.loads((opened.folder / "manifest.json").read_text())["cell"]["target"] == "tiny"
        assert load_run(opened.folder).records == []


def test_exports_hold_ids_and_rounds_of_every_record_and_finish_is_idempotent(tmp_path: Path) -> None:
    store = ResultStore(tmp_path)
    with store.open_run(make_manifest()) as opened:
        write_block(opened, "a")
        opened.finish()
        before = {path.name: path.read_bytes() for path in opened.folder.iterdir()}
        opened.finish()
    with store.open_run(make_manifest()) as again:
        assert again.finished
        again.finish()
    after = {path.name: path.read_bytes() for path in opened.folder.iterdir()}
    assert {**before, "lock": b""} == {**after, "lock": b""}
    rows = [json.loads(line) for line in after["records.jsonl"].splitlines()]
    assert [row["arm"] for row in rows] == ["vanilla", "ngram"]
    assert (rows[1]["output_ids"], rows[1]["accepted"], rows[1]["emitted"]) == ([5, 6, 7, 8], [1, 0], [2, 1])
    frame = pd.read_parquet(opened.folder / "records.parquet")
    assert [list(ids) for ids in frame["output_ids"]] == [[5, 6, 7, 8]] * 2
    assert list(frame["total_ns"]) == [1000, 1000]


def test_a_run_without_records_can_be_finished(tmp_path: Path) -> None:
    with ResultStore(tmp_path).open_run(make_manifest()) as opened:
        opened.finish()
    assert load_run(opened.folder).finished
    assert (opened.folder / "records.jsonl").read_text() == ""


@pytest.mark.parametrize("num_lines", [1, 6, 11])
def test_kill_9_and_resume_lose_and_duplicate_nothing(tmp_path: Path, num_lines: int) -> None:
    names = [f"c{index}" for index in range(6)]
    writer = start(
        """
        with ResultStore(Path(sys.argv[1])).open_run(make_manifest()) as run:
            for name in sys.argv[2:]:
                run.begin_block(name)
                for arm in ("vanilla", "ngram"):
                    run.write_record(make_record(name, arm))
                    print(name, arm, flush=True)
                    time.sleep(0.01)
                run.finish_block(name)
                print(name, "finished", flush=True)
        """,
        tmp_path,
        *names,
    )
    assert writer.stdout
    told = [writer.stdout.readline().split() for _ in range(num_lines)]
    os.kill(writer.pid, signal.SIGKILL)
    writer.communicate()
    assert writer.returncode == -signal.SIGKILL
    told_finished = {name for name, what in told if what == "finished"}
    store = ResultStore(tmp_path)
    assert not store.is_finished(make_manifest().run_id)
    with store.open_run(make_manifest()) as opened:
        done = opened.finished_blocks
        assert told_finished <= done
        assert done < set(names)
        for name in names:
            if name not in done:
                write_block(opened, name)
        opened.finish()
    run = load_run(opened.folder)
    assert [(r.conversation, r.arm) for r in run.records] == [
        (name, arm) for name in names for arm in ("vanilla", "ngram")
    ]
    assert len((opened.folder / "records.jsonl").read_text().splitlines()) == 12


def test_records_of_an_unfinished_block_count_only_once_it_is_measured_again(tmp_path: Path) -> None:
    store = ResultStore(tmp_path)
    with store.open_run(make_manifest()) as opened:
        opened.begin_block("a")
        opened.write_record(make_record("a", repeat=1))
    assert load_run(opened.folder).records == []
    with store.open_run(make_manifest()) as again:
        again.begin_block("a")
        again.write_record(make_record("a", repeat=2))
        again.finish_block("a")
    assert [record.repeat for record in load_run(opened.folder).records] == [2]


@pytest.mark.parametrize("num_cut", [1, 2, 40])
def test_a_torn_last_line_is_healed_and_told(tmp_path: Path, num_cut: int) -> None:
    store = ResultStore(tmp_path)
    with store.open_run(make_manifest()) as opened:
        write_block(opened, "a")
        write_block(opened, "b")
    journal = opened.folder / "journal.jsonl"
    whole = journal.read_bytes()
    journal.write_bytes(whole[:-num_cut])
    assert {record.conversation for record in load_run(opened.folder).records} == {"a"}
    with store.open_run(make_manifest()) as again:
        assert "torn" in again.healed
        assert str(journal) in again.healed
        assert again.finished_blocks == {"a"}
        write_block(again, "b")
    with store.open_run(make_manifest()) as third:
        assert third.healed == ""
        assert third.finished_blocks == {"a", "b"}


def test_a_last_line_of_garbage_is_healed(tmp_path: Path) -> None:
    store = ResultStore(tmp_path)
    with store.open_run(make_manifest()) as opened:
        write_block(opened, "a")
    with (opened.folder / "journal.jsonl").open("ab") as file:
        file.write(b"\0" * 50 + b"\n")
    with store.open_run(make_manifest()) as again:
        assert "torn" in again.healed
        assert again.finished_blocks == {"a"}


@pytest.mark.parametrize("number", [1, 3, 5])
def test_a_corrupt_line_is_reported_with_file_and_line(tmp_path: Path, number: int) -> None:
    store = ResultStore(tmp_path)
    with store.open_run(make_manifest()) as opened:
        write_block(opened, "a")
    journal = opened.folder / "journal.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    lines[number - 1] = lines[number - 1].replace(b'"data":', b'"dato":')
    journal.write_bytes(b"".join(lines))
    for read in (
        lambda: load_run(opened.folder),
        lambda: load_runs(tmp_path),
        lambda: store.open_run(make_manifest()),
        lambda: store.is_finished(make_manifest().run_id),
    ):
        with pytest.raises(CorruptJournal, match=rf"journal\.jsonl, line {number} of 6: its checksum"):
            read()
    assert journal.read_bytes() == b"".join(lines)


@pytest.mark.parametrize(
    ("extra", "why"),
    [
        ([("finish_block", "a")], "outside a block"),
        ([("begin_block", "a")], "finished"),
        ([("begin_block", "b"), ("finish_block", "c")], "ends inside block 'b'"),
        ([("surprise", {})], "unknown kind 'surprise'"),
        ([("finished", {}), ("probe", Probe(1.0, 1.0)._asdict())], "after the run was finished"),
    ],
)
def test_a_sound_line_in_a_wrong_place_is_reported(
    tmp_path: Path, extra: list[tuple[str, Any]], why: str
) -> None:
    with ResultStore(tmp_path).open_run(make_manifest()) as opened:
        write_block(opened, "a")
    added = more_lines(opened.folder, *extra)
    with (opened.folder / "journal.jsonl").open("ab") as file:
        file.write(added)
    with pytest.raises(CorruptJournal, match=why):
        load_run(opened.folder)


def test_two_processes_on_one_run_id_refuse_each_other(tmp_path: Path) -> None:
    holder = start(
        """
        with ResultStore(Path(sys.argv[1])).open_run(make_manifest()) as run:
            print("open", flush=True)
            sys.stdin.read()
        """,
        tmp_path,
    )
    try:
        assert holder.stdout
        assert holder.stdout.readline() == "open\n"
        with pytest.raises(RunBusy, match=f"{make_manifest().run_id}: process {holder.pid} on .* is writing"):
            ResultStore(tmp_path).open_run(make_manifest())
        with ResultStore(tmp_path).open_run(make_manifest("tiny.smoke.greedy.other")):
            pass
    finally:
        holder.kill()
        holder.communicate()
    with ResultStore(tmp_path).open_run(make_manifest()) as opened:
        assert opened.finished_blocks == set()


def test_a_refused_opening_leaves_the_lock_free(tmp_path: Path) -> None:
    store = ResultStore(tmp_path)
    store.open_run(make_manifest()).close()
    with pytest.raises(ConfigError):
        store.open_run(make_manifest(prompts={"hash": "other"}))
    store.open_run(make_manifest()).close()


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"prompts": {"count": 3, "hash": "other"}}, "prompts"),
        ({"target": {"source": "elsewhere"}}, r"target\.source"),
        ({"arms": {"vanilla": {}}}, "arms"),
    ],
)
def test_a_different_run_under_the_same_id_is_refused(
    tmp_path: Path, changes: dict[str, Any], named: str
) -> None:
    store = ResultStore(tmp_path)
    store.open_run(make_manifest()).close()
    with pytest.raises(ConfigError, match=f"these differ: {named}"):
        store.open_run(make_manifest(**changes))


def test_resuming_keeps_the_first_manifest(tmp_path: Path) -> None:
    store = ResultStore(tmp_path)
    store.open_run(make_manifest(created="first")).close()
    with store.open_run(make_manifest(created="second", overrides=["tracker=none"])) as opened:
        assert opened.manifest.created == "first"


def test_a_failure_is_of_its_block_or_of_the_last_attempt(tmp_path: Path) -> None:
    store = ResultStore(tmp_path)
    lasting, passing = Failure("error", "ngram, a", "x"), Failure("interrupted", "ngram, b", "y")
    with store.open_run(make_manifest()) as opened:
        opened.begin_block("a")
        opened.write_failure(lasting)
        opened.finish_block("a")
        opened.begin_block("b")
        opened.write_failure(passing)
    assert load_run(opened.folder).failures == [lasting, passing]
    with store.open_run(make_manifest()) as again:
        write_block(again, "b")
        again.finish()
    assert load_run(opened.folder).failures == [lasting]


def test_a_failure_of_a_block_given_up_is_kept(tmp_path: Path) -> None:
    failure = Failure("out-of-memory", "ngram, a", "x")
    with ResultStore(tmp_path).open_run(make_manifest()) as opened:
        opened.begin_block("a")
        opened.write_failure(failure)
        write_block(opened, "b")
        opened.finish()
    assert load_run(opened.folder).failures == [failure]


def test_a_failed_cell_is_a_run_that_tables_can_show(tmp_path: Path) -> None:
    store = ResultStore(tmp_path)
    failure = Failure("config", "tiny, smoke", "no such file")
    config = {"task": {"path": "x", "hub_token": "s3cret"}}
    for _ in range(2):
        folder = store.write_failed_cell(failure, CELL, config=config, overrides=["task=smoke"])
    (run,) = store.load_runs()
    assert run.folder == str(folder)
    assert (run.manifest.cell, run.failures, run.finished) == (CELL, [failure], False)
    assert "s3cret" not in (folder / "manifest.json").read_text()
    other = store.write_failed_cell(failure, replace(CELL, task="gsm8k"), overrides=["task=gsm8k"])
    assert other != folder


def test_the_next_replicate_is_the_first_unfinished(tmp_path: Path) -> None:
    store = ResultStore(tmp_path)
    assert store.next_replicate("run-{}".format) == 0
    for run_id in ("run-0", "run-1"):
        with store.open_run(make_manifest(run_id)) as opened:
            opened.finish()
    store.open_run(make_manifest("run-2")).close()
    assert store.next_replicate("run-{}".format) == 2


def test_runs_are_loaded_sorted_and_none_is_passed_over(tmp_path: Path) -> None:
    store = ResultStore(tmp_path)
    for run_id in ("b", "a"):
        store.open_run(make_manifest(run_id)).close()
    (tmp_path / "empty").mkdir()
    (tmp_path / "died-early").mkdir()
    (tmp_path / "died-early" / "lock").touch()
    (tmp_path / "died-early" / "manifest.json.part").touch()
    assert [run.manifest.run_id for run in load_runs(tmp_path)] == ["a", "b"]
    (tmp_path / "stray").mkdir()
    (tmp_path / "stray" / "journal.jsonl").touch()
    with pytest.raises(ConfigError, match="stray: has no manifest"):
        load_runs(tmp_path)


def test_a_missing_root_a_broken_and_a_newer_manifest_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere: no such folder.*harness\.bench"):
        load_runs(tmp_path / "nowhere")
    store = ResultStore(tmp_path)
    store.open_run(make_manifest("a")).close()
    path = tmp_path / "a" / "manifest.json"
    sound = path.read_text()
    path.write_text(sound[:-10])
    with pytest.raises(CorruptJournal, match=r"a/manifest\.json: is not JSON"):
        load_runs(tmp_path)
    path.write_text(json.dumps({**json.loads(sound), "schema_version": 99}))
    with pytest.raises(ConfigError, match="schema version 99"):
        load_runs(tmp_path)


def test_every_line_is_on_the_disk_before_the_call_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ResultStore(tmp_path).open_run(make_manifest()) as opened:
        synced: list[int] = []
        real = os.fsync

        def spy(descriptor: int) -> None:
            real(descriptor)
            synced.append(os.fstat(descriptor).st_size)

        monkeypatch.setattr(os, "fsync", spy)
        opened.begin_block("a")
        opened.write_record(make_record("a"))
        size = (opened.folder / "journal.jsonl").stat().st_size
        assert len(synced) == 2
        assert synced[-1] == size


def test_runs_are_read_without_torch(tmp_path: Path) -> None:
    with ResultStore(tmp_path).open_run(make_manifest()) as opened:
        write_block(opened, "a")
        opened.finish()
    script = """
        import sys

        class NoTorch:
            def find_spec(self, name, path=None, target=None):
                if name.partition(".")[0] in ("torch", "transformers"):
                    raise ImportError(f"{name} is not for reports")

        sys.meta_path.insert(0, NoTorch())
        from pathlib import Path
        import harness.system.console, harness.tracking.wandb_tracker
        from harness.store.run_store import load_runs
        print(sum(len(run.records) for run in load_runs(Path(sys.argv[1]))))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("2\n", "")


def test_a_record_survives_the_journal_unchanged(tmp_path: Path) -> None:
    record = dataclasses.replace(
        make_record("\u2028 emoji \U0001f600 \r\n"), verdict=None, peak_memory_bytes=2**40
    )
    with ResultStore(tmp_path).open_run(make_manifest()) as opened:
        opened.begin_block("a\nb")
        opened.write_record(record)
        opened.finish_block("a\nb")
    assert load_run(opened.folder).records == [record]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [({"run_id": "../outside"}, "run_id"), ({"provenance": {"threads": math.nan}}, "provenance.threads")],
)
def test_a_manifest_that_no_reader_would_accept_is_refused_and_leaves_nothing(
    tmp_path: Path, changes: dict[str, Any], reason: str
) -> None:
    root = tmp_path / "runs"
    with pytest.raises(ConfigError, match=f"its manifest could not be read again: {reason}"):
        ResultStore(root).open_run(replace(make_manifest(), **changes))
    assert not list(tmp_path.iterdir())
