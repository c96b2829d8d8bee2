"""A journal is what was written, or the line that is not is named."""

from __future__ import annotations

import json
import random
import shutil
import zlib
from pathlib import Path
from typing import Any

import pytest

from harness.cli.report_command import main
from harness.store.integrity.lines import Chain
from harness.store.journal import JOURNAL, CorruptJournal
from harness.store.parquet import COLUMNS
from harness.store.records import SCHEMA_VERSION
from harness.store.run_store import MANIFEST, RECORDS, ResultStore, load_run, load_runs
from harness.store.upkeep.archives import compact, expand
from harness.store.upkeep.migration import migrate
from harness.store.upkeep.verify import verify
from tests.store.test_run_store import make_manifest, make_record, write_block
from tests.support.builders import sample_run, write_runs
from tests.support.journals import Entries, forge


def states(root: Path) -> dict[str, str]:
    return {finding.run: finding.state for finding in verify(root)}


def reason(root: Path) -> str:
    (finding,) = verify(root)
    assert finding.state == "damaged"
    return finding.reason


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two finished runs of two blocks."""
    for name in ("a", "b"):
        with ResultStore(tmp_path).open_run(make_manifest(name)) as opened:
            write_block(opened, "one")
            write_block(opened, "two")
            opened.finish()
    return tmp_path


def test_journals_of_two_runs_exchanged_are_refused_by_every_command(root: Path) -> None:
    first, second = (root / name / JOURNAL for name in ("a", "b"))
    mine, theirs = first.read_bytes(), second.read_bytes()
    first.write_bytes(theirs)
    second.write_bytes(mine)
    assert states(root) == {"a": "damaged", "b": "damaged"}
    with pytest.raises(CorruptJournal, match=r'a/journal\.jsonl, line 1 of 12: it belongs to the run "b"'):
        load_runs(root)
    with pytest.raises(CorruptJournal):
        ResultStore(root).is_finished("a")


def test_a_run_of_the_same_id_from_elsewhere_cannot_give_its_journal(root: Path, tmp_path: Path) -> None:
    with ResultStore(tmp_path / "elsewhere").open_run(make_manifest("a", created="later")) as opened:
        write_block(opened, "one")
    shutil.copy(opened.folder / JOURNAL, root / "a" / JOURNAL)
    with pytest.raises(CorruptJournal, match="line 1 of 6: it does not follow from the line before it"):
        load_run(root / "a")


@pytest.mark.parametrize("change", ["drop", "double", "swap", "edit"])
def test_a_line_changed_with_its_checksum_is_found(root: Path, change: str) -> None:
    journal = root / "a" / JOURNAL
    lines = journal.read_bytes().splitlines(keepends=True)
    match change:
        case "drop":
            del lines[3]
        case "double":
            lines.insert(3, lines[3])
        case "swap":
            lines[2], lines[3] = lines[3], lines[2]
        case _:
            entry = json.loads(lines[2])
            entry["data"]["output_ids"][0] += 1
            # What the editor's own link would be, after which the next line does not fit.
            before = json.loads(lines[1])["chain"]
            lines[2], _ = Chain("a", before).encode(entry["kind"], entry["data"])
    journal.write_bytes(b"".join(lines))
    with pytest.raises(CorruptJournal, match=r"line \d+ of \d+: it does not follow from the line before it"):
        load_run(root / "a")


def test_an_edited_manifest_is_found(root: Path) -> None:
    path = root / "a" / MANIFEST
    path.write_text(path.read_text().replace('"quick"', '"full"'))
    with pytest.raises(CorruptJournal, match=r"manifest\.json: it was changed after it was written"):
        load_run(root / "a")


@pytest.mark.parametrize("num_cut", [1, 30, 400])
def test_a_chain_goes_on_after_a_kill_in_the_middle_of_a_line(tmp_path: Path, num_cut: int) -> None:
    store = ResultStore(tmp_path)
    with store.open_run(make_manifest("a")) as opened:
        write_block(opened, "one")
        opened.begin_block("two")
        opened.write_record(make_record("two"))
    journal = tmp_path / "a" / JOURNAL
    journal.write_bytes(journal.read_bytes()[:-num_cut])
    with store.open_run(make_manifest("a")) as again:
        write_block(again, "two")
        again.finish()
    assert states(tmp_path) == {"a": "verified"}


def test_a_chain_survives_packing_unpacking_and_migration(root: Path) -> None:
    compact(root, lambda _: None)
    assert states(root) == {"a": "verified", "b": "verified"}
    expand(root, lambda _: None)
    manifest = root / "a" / MANIFEST
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "schema_version": 2}))
    assert migrate(root, lambda _: None) == 1
    assert states(root) == {"a": "verified", "b": "verified"}


def test_a_run_from_before_there_were_chains_reads_and_is_not_called_damaged(tmp_path: Path) -> None:
    write_runs([sample_run("old"), sample_run("new")], tmp_path)
    before = load_run(tmp_path / "runs" / "old").records
    forge(tmp_path / "runs" / "old", chained=False)
    assert states(tmp_path / "runs") == {"old": "not verifiable", "new": "verified"}
    assert load_run(tmp_path / "runs" / "old").records == before
    assert main(["migrate", "--results", str(tmp_path)]) == 0
    assert json.loads((tmp_path / "runs" / "old" / MANIFEST).read_text())["schema_version"] == SCHEMA_VERSION
    assert states(tmp_path / "runs")["old"] == "not verifiable"


def test_an_older_run_that_is_not_finished_is_continued_in_its_own_form(tmp_path: Path) -> None:
    store = ResultStore(tmp_path)
    with store.open_run(make_manifest("a")) as opened:
        write_block(opened, "one")
    forge(tmp_path / "a", chained=False)
    with store.open_run(make_manifest("a")) as again:
        assert again.finished_blocks == {"one"}
        write_block(again, "two")
        again.finish()
    assert states(tmp_path) == {"a": "not verifiable"}


def edited(change: dict[str, Any]) -> Any:
    def edit(entries: Entries) -> None:
        next(data for kind, data in entries if kind == "record").update(change)

    return edit


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"total_ns": -1}, "total_ns: -1 is outside"),
        ({"verify_ns": [20, -21]}, "verify_ns: -21"),
        ({"accepted": [4, 0], "drafted": [3, 0]}, "accepted 4"),
        ({"emitted": [3, 0], "accepted": [1, 0]}, "Assertion failed"),
        ({"output_ids": [5, 6, 7]}, "tokens and rounds disagree"),
        ({"output_ids": [5, 6, 7, 99]}, "output_ids: 99 is outside of 0 to 49"),
        ({"draft_ns": [1]}, "draft_ns: has 1 entries for 2 rounds"),
        ({"total_ns": None}, "total_ns: Input should be a valid integer"),
        ({"turn": "0"}, "turn: Input should be a valid integer"),
        ({"colour": 1}, "colour: Unexpected keyword argument"),
        ({"verdict": {"kind": "fine"}}, r"verdict\.kind: Input should be"),
    ],
)
@pytest.mark.parametrize("chained", [True, False])
def test_a_record_that_cannot_be_is_refused_even_if_its_checksums_fit(
    tmp_path: Path, change: dict[str, Any], told: str, chained: bool
) -> None:
    with ResultStore(tmp_path).open_run(
        make_manifest("a", target={"source": "test", "vocab_size": 50})
    ) as opened:
        write_block(opened, "one")
        opened.finish()
    forge(tmp_path / "a", edited(change), chained=chained)
    with pytest.raises(CorruptJournal, match=rf"journal\.jsonl, line 3 of 7: .*{told}"):
        load_runs(tmp_path)
    assert told.split(":")[0].replace("\\", "") in reason(tmp_path)


def test_ids_edited_under_the_verdict_identical_are_found_without_a_chain_too(tmp_path: Path) -> None:
    write_runs([sample_run("old")], tmp_path)

    def edit(entries: Entries) -> None:
        chosen = [data for kind, data in entries if kind == "record" and data["arm"] == "ngram"]
        chosen[0]["output_ids"][1] += 1

    forge(tmp_path / "runs" / "old", edit, chained=False)
    assert "ngram is called identical with vanilla" in reason(tmp_path / "runs")


@pytest.mark.parametrize("name", [RECORDS, COLUMNS])
def test_an_export_that_was_edited_is_found(tmp_path: Path, name: str) -> None:
    write_runs([sample_run("a")], tmp_path)
    path = tmp_path / "runs" / "a" / name
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 1
    path.write_bytes(content)
    assert name in reason(tmp_path / "runs")
    assert main(["verify", "--results", str(tmp_path)]) == 1


MANIFESTS: list[dict[str, Any]] = [
    {"arms": None},
    {"arms": {"vanilla": []}},
    {"rungs": [1]},
    {"config": {"decoding": "greedy"}},
    {"config": {"decoding": {"seeds": 3}}},
    {"provenance": {"device": "cpu"}},
    {"target": {"step_bytes": "many"}},
    {"prompts": []},
    {"cell": {}},
    {"run_id": "../x"},
    {"replicate": "next"},
]


@pytest.mark.parametrize("change", MANIFESTS, ids=str)
def test_a_manifest_of_wrong_types_is_an_error_that_names_its_file(
    root: Path, change: dict[str, Any]
) -> None:
    forge(root / "a", of_manifest=lambda manifest: manifest.update(change))
    with pytest.raises(CorruptJournal, match=r"a/manifest\.json: "):
        load_runs(root)


def test_any_byte_of_a_journal_may_be_wrong_and_none_is_believed(root: Path) -> None:
    journal, rng = root / "a" / JOURNAL, random.Random(1)
    whole, before = journal.read_bytes(), load_run(root / "a").records
    for _ in range(100):
        content = bytearray(whole)
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        journal.write_bytes(content)
        try:
            run = load_run(root / "a")
        except CorruptJournal:
            continue
        # Only the last line may be damaged, as a crash leaves it.
        assert not run.finished
        assert run.records == before


DEEP = b"[" * 200_000


def test_json_that_is_nested_too_deep_is_an_error_that_names_file_and_line(root: Path) -> None:
    forge(root / "a", chained=False)
    journal = root / "a" / JOURNAL
    checked = b'"kind":"failure","data":%s}' % (DEEP + DEEP.replace(b"[", b"]"))
    deep = b'{"crc":"%08x",%s\n' % (zlib.crc32(checked), checked)
    journal.write_bytes(deep + journal.read_bytes())
    with pytest.raises(CorruptJournal, match=r"a/journal\.jsonl, line 1 of \d+: .*recursion limit exceeded"):
        load_run(root / "a")
    (root / "b" / MANIFEST).write_bytes(DEEP)
    with pytest.raises(CorruptJournal, match=r"b/manifest\.json: is not JSON"):
        load_run(root / "b")
