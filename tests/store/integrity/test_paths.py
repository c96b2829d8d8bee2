"""No path of a store leads out of it, and none waits, fills the memory or is followed."""

from __future__ import annotations

import os
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.cli.report_command import main
from harness.config import ConfigError
from harness.store.integrity.paths import fault_of_name, read_file
from harness.store.journal import JOURNAL
from harness.store.locations import children_of, run_folders
from harness.store.run_store import MANIFEST, ResultStore, load_run, load_runs
from harness.store.upkeep.archives import compact, expand
from harness.store.write_lock import LOCK, holder
from harness.system.files import write_whole
from tests.store.test_run_store import make_manifest, write_block
from tests.support.builders import sample_run, write_runs


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_runs([sample_run("a")], tmp_path / "results")
    (tmp_path / "outside").write_text("mine")
    return tmp_path / "results" / "runs"


def quiet(_: str) -> None:
    pass


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a\\b", "a\0b", "a\nb", "x" * 256])
def test_a_name_that_leaves_its_folder_or_hides_is_none(name: str) -> None:
    assert fault_of_name(name)


@pytest.mark.parametrize("name", ["tiny.smoke.greedy.0123456789", "ein Bild é.png", "..."])
def test_an_ordinary_name_is_one(name: str) -> None:
    assert not fault_of_name(name)


def _dot_dot(archive: zipfile.ZipFile) -> None:
    archive.writestr("a/../../outside", "theirs")


def _absolute(archive: zipfile.ZipFile) -> None:
    archive.writestr("/tmp/x", "theirs")


def _doubled(archive: zipfile.ZipFile) -> None:
    with pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr(f"a/{MANIFEST}", "{}")


def _link(archive: zipfile.ZipFile) -> None:
    member = zipfile.ZipInfo("a/link")
    member.external_attr = (stat.S_IFLNK | 0o777) << 16
    archive.writestr(member, "/etc/passwd")


def _bomb(archive: zipfile.ZipFile) -> None:
    archive.writestr("a/zeros", b"\0" * (3 << 20), zipfile.ZIP_DEFLATED)


def _under_a_file(archive: zipfile.ZipFile) -> None:
    archive.writestr(f"a/{JOURNAL}/x", "theirs")


def _hidden(archive: zipfile.ZipFile) -> None:
    archive.writestr(".packing/x", "theirs")


@pytest.mark.parametrize("add", [_dot_dot, _absolute, _doubled, _link, _bomb, _under_a_file, _hidden])
def test_an_archive_with_a_member_that_must_not_be_unpacked_is_refused_whole(
    root: Path, add: Callable[[zipfile.ZipFile], None]
) -> None:
    (pack,) = compact(root, quiet)
    with zipfile.ZipFile(pack, "a") as archive:
        add(archive)
    for read in (lambda: expand(root, quiet), lambda: load_runs(root), lambda: compact(root, quiet)):
        with pytest.raises(ConfigError, match=pack.name):
            read()
    assert (root.parents[1] / "outside").read_text() == "mine"
    assert sorted(path.name for path in root.parent.parent.iterdir()) == ["outside", "results"]


def test_two_packs_that_disagree_about_a_run_are_refused(root: Path) -> None:
    (pack,) = compact(root, quiet)
    twin = pack.with_name("packed-0.zip")
    twin.write_bytes(pack.read_bytes())
    assert list(run_folders(root)) == ["a"]
    with zipfile.ZipFile(twin, "a") as archive:
        archive.writestr("a/more", "theirs")
    with pytest.raises(ConfigError, match="Move one of the two packs away"):
        run_folders(root)


@pytest.mark.parametrize("name", [LOCK, JOURNAL, f"{MANIFEST}.part"])
def test_a_link_in_a_run_folder_is_not_written_through(tmp_path: Path, name: str) -> None:
    outside, store = tmp_path / "outside", ResultStore(tmp_path / "runs")
    outside.write_text("mine")
    (store.root / "a").mkdir(parents=True)
    (store.root / "a" / name).symlink_to(outside)
    with pytest.raises((ConfigError, OSError)):
        store.open_run(make_manifest("a"))
    assert outside.read_text() == "mine"
    assert holder(store.root / "a") is None


@pytest.mark.parametrize("name", [JOURNAL, MANIFEST])
def test_a_link_or_a_pipe_in_the_place_of_a_file_is_refused_at_once(root: Path, name: str) -> None:
    path = root / "a" / name
    moved = root.parents[1] / "moved"
    path.rename(moved)
    path.symlink_to(moved)
    with pytest.raises(ConfigError, match=f"{name}: is a symbolic link"):
        load_run(root / "a")
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(ConfigError, match=f"{name}: is no plain file"):
        load_run(root / "a")
    assert main(["build", "--results", str(root.parent), "--format", "md"]) == 2


def test_a_run_folder_that_is_a_link_is_not_read_and_does_not_jam_packing(root: Path, tmp_path: Path) -> None:
    write_runs([sample_run("b")], tmp_path / "other")
    (root / "b").symlink_to(tmp_path / "other" / "runs" / "b")
    with pytest.raises(ConfigError, match="b: is a symbolic link"):
        load_runs(root)
    notes: list[str] = []
    assert len(compact(root, notes.append)) == 1
    assert any("stays as it is" in note for note in notes)
    assert (root / "b").is_symlink()
    assert compact(root, quiet) == []


def test_what_an_earlier_jam_left_is_removed(root: Path, tmp_path: Path) -> None:
    (root / ".gone-b").symlink_to(tmp_path)
    compact(root, quiet)
    assert not (root / ".gone-b").is_symlink()
    assert (tmp_path / "outside").exists()


def test_the_tables_of_a_strangers_store_are_not_written_through_a_link(root: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (root.parent / "tables").symlink_to(tmp_path / "elsewhere")
    assert main(["build", "--results", str(root.parent), "--format", "md"]) == 2
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"12345")
    assert read_file(tmp_path / "x", 5) == b"12345"
    with pytest.raises(ConfigError, match="has 5 bytes, and 4 is the most"):
        read_file(tmp_path / "x", 4)


def test_a_url_that_lists_what_does_not_lie_in_it_is_refused() -> None:
    class Listing:
        def __init__(self, path: str) -> None:
            self.name, self.parent = path.rpartition("/")[2], path.rpartition("/")[0]
            self._path = path

        def __str__(self) -> str:
            return self._path

        def iterdir(self) -> list[Listing]:
            return [Listing("https://elsewhere/secret")]

    with pytest.raises(ConfigError, match="does not lie in it"):
        children_of(Listing("https://here/runs"))  # type: ignore[arg-type]


def test_a_deleted_lock_file_lets_no_second_writer_in(tmp_path: Path) -> None:
    store = ResultStore(tmp_path)
    with store.open_run(make_manifest("a")) as opened:
        (opened.folder / LOCK).unlink()
        with pytest.raises(ConfigError, match="whose lock file was deleted"):
            store.open_run(make_manifest("a"))
        write_block(opened, "one")
    assert len(load_run(tmp_path / "a").records) == 2


def test_a_line_that_finds_the_disk_full_is_taken_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = ResultStore(tmp_path)
    with store.open_run(make_manifest("a")) as opened:
        write_block(opened, "one")
        opened.begin_block("two")
        before = (opened.folder / JOURNAL).read_bytes()
        real = os.pwrite

        def half(descriptor: int, data: bytes, place: int) -> int:
            real(descriptor, data[: len(data) // 2], place)
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patched:
            patched.setattr(os, "pwrite", half)
            with pytest.raises(OSError, match="No space left"):
                opened.finish_block("two")
        assert (opened.folder / JOURNAL).read_bytes() == before
        with pytest.raises(OSError, match="an earlier line could not be written"):
            opened.begin_block("three")
    with store.open_run(make_manifest("a")) as again:
        assert again.finished_blocks == {"one"}


def test_a_full_disk_leaves_neither_half_a_file_nor_its_beginning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_whole(tmp_path / "x", b"content")
    assert list(tmp_path.iterdir()) == []
