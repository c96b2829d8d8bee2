"""Packs and migration: nothing is lost or changed, wherever it breaks off."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from harness.cli.report_command import main
from harness.config import ConfigError
from harness.store import records
from harness.store.integrity import manifests
from harness.store.journal import JOURNAL
from harness.store.locations import run_folders
from harness.store.parquet import COLUMNS, read_about
from harness.store.run_store import MANIFEST, ResultStore, load_run, load_runs
from harness.store.upkeep import archives
from tests.support.builders import failed_run, sample_run, write_runs


def contents(root: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file() and path.name not in ("lock", ".packing")
    }


def quiet(_: str) -> None:
    pass


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three finished runs, one with figures, and one that failed."""
    write_runs([*(sample_run(f"run-{n}", seed=n) for n in range(3)), failed_run()], tmp_path)
    figures = tmp_path / "runs" / "run-1" / "figures"
    figures.mkdir()
    (figures / "speed.png").write_bytes(b"\x89PNG")
    return tmp_path / "runs"


def names(root: Path) -> set[str]:
    return {path.name for path in root.iterdir() if path.is_dir()}


def test_packing_and_unpacking_give_every_byte_back(root: Path) -> None:
    before = contents(root)
    made = archives.compact(root, quiet, together=2)
    assert len(made) == 2
    assert names(root) == {failed_run().manifest.run_id}
    assert archives.expand(root, quiet) == 3
    assert contents(root) == before


def test_a_report_of_packs_is_that_of_their_folders(root: Path) -> None:
    results = root.parent
    for out in ("before", "after"):
        main(
            ["build", "--results", str(results), "--out", str(results / out), "--format", "md", "csv", "html"]
        )
        main(["compact", "--results", str(results)])
    before, after = (contents(results / out) for out in ("before", "after"))
    assert len(before) == 4
    assert before == after


def test_a_packed_run_is_done_and_read_as_before(root: Path) -> None:
    store_of_runs = ResultStore(root)
    before = load_run(root / "run-1")
    archives.compact(root, quiet)
    assert store_of_runs.is_finished("run-1")
    assert not store_of_runs.is_finished("run-9")
    assert store_of_runs.next_replicate("run-{}".format) == 3
    after = load_run(root / "run-1")
    assert (after.records, after.exhibits, after.manifest) == (
        before.records,
        before.exhibits,
        before.manifest,
    )


def crash(*_: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("place", ["put_in_place", "_delete", "shutil.rmtree"])
def test_packing_that_breaks_off_loses_nothing_and_is_resumed(
    place: str, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(root)
    with monkeypatch.context() as patched:
        patched.setattr(f"harness.store.upkeep.archives.{place}", crash)
        with pytest.raises(KeyboardInterrupt):
            archives.compact(root, quiet)
    assert len(load_runs(root)) == 4
    archives.compact(root, quiet)
    assert len(load_runs(root)) == 4
    assert names(root) == {failed_run().manifest.run_id}
    archives.expand(root, quiet)
    assert contents(root) == before


@pytest.mark.parametrize("place", ["harness.store.upkeep.archives.write_whole", "pathlib.Path.unlink"])
def test_unpacking_that_breaks_off_loses_nothing_and_is_resumed(
    place: str, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(root)
    archives.compact(root, quiet)
    with monkeypatch.context() as patched:
        patched.setattr(place, crash)
        with pytest.raises(KeyboardInterrupt):
            archives.expand(root, quiet)
    assert len(load_runs(root)) == 4
    archives.expand(root, quiet)
    assert contents(root) == before


def test_a_folder_that_is_not_what_was_packed_is_left_alone_and_told(root: Path) -> None:
    kept = root.parent / "kept"
    shutil.copytree(root / "run-0", kept)
    archives.compact(root, quiet)
    (kept / "records.jsonl").write_text("other")
    shutil.move(kept, root / "run-0")
    for command in (archives.compact, archives.expand):
        with pytest.raises(ConfigError, match=r"run-0/records\.jsonl: differs from"):
            command(root, quiet)
    assert (root / "run-0" / "records.jsonl").read_text() == "other"


def test_a_broken_pack_is_named(root: Path) -> None:
    (pack,) = archives.compact(root, quiet)
    pack.write_bytes(pack.read_bytes()[:1000])
    with pytest.raises(ConfigError, match=f"^{re.escape(str(pack))}: is not a readable pack of runs"):
        run_folders(root)


def as_version_1(folder: Path) -> None:
    """What the first version of the harness left: an export that knows nothing of its journal."""
    manifest = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps({**manifest, "schema_version": 1}))
    (folder / COLUMNS).write_bytes(b"older")


def test_a_store_of_version_1_is_read_and_migrated_to_what_this_version_writes(root: Path) -> None:
    before = contents(root)
    for name in ("run-0", "run-2"):
        as_version_1(root / name)
    assert [len(run.records) for run in load_runs(root)] == [
        len(load_run(f).records) for f in run_folders(root).values()
    ]
    assert main(["migrate", "--results", str(root.parent)]) == 0
    assert contents(root) == before
    assert read_about(root / "run-0") is not None


def test_a_version_that_is_no_longer_read_is_refused_with_the_command_that_helps(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_version_1(root / "run-0")
    monkeypatch.setattr(manifests, "READABLE_VERSIONS", (records.SCHEMA_VERSION,))
    with pytest.raises(ConfigError, match=r"python -m harness\.report migrate --results") as refused:
        load_runs(root)
    command = str(refused.value).partition("python -m harness.report ")[2].split()
    assert main(command) == 0
    assert len(load_runs(root)) == 4


def test_a_version_from_the_future_is_not_migrated(root: Path) -> None:
    manifest = json.loads((root / "run-0" / MANIFEST).read_text())
    (root / "run-0" / MANIFEST).write_text(json.dumps({**manifest, "schema_version": 99}))
    assert main(["migrate", "--results", str(root.parent)]) == 2
    assert json.loads((root / "run-0" / MANIFEST).read_text())["schema_version"] == 99


def test_migration_touches_no_journal(root: Path) -> None:
    as_version_1(root / "run-0")
    journal = (root / "run-0" / JOURNAL).stat()
    main(["migrate", "--results", str(root.parent)])
    assert (root / "run-0" / JOURNAL).stat().st_mtime_ns == journal.st_mtime_ns
