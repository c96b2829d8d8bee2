"""Roots: one report of several places, here and behind URLs."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import pytest

from harness.cli.report_command import main
from harness.config import ConfigError
from harness.store.locations import locate
from harness.store.upkeep.archives import compact
from tests.support.builders import failed_run, sample_run, write_runs

FORMATS = ("--format", "md", "csv")


def report(out: Path, *roots: object) -> dict[str, bytes]:
    status = main(["build", "--results", *map(str, roots), "--out", str(out), *FORMATS])
    assert status in (0, 1)
    return {path.name: path.read_bytes() for path in out.iterdir()}


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    """Results with two finished runs, a packed one, and one that failed."""
    results = tmp_path / "whole"
    write_runs([sample_run("run-0")], results)
    compact(results / "runs", lambda _: None)
    write_runs([sample_run("run-1", seed=1), sample_run("run-2", seed=2), failed_run()], results)
    return results


def test_several_roots_are_read_as_one(whole: Path, tmp_path: Path) -> None:
    expected = report(tmp_path / "one", whole)
    other = tmp_path / "other"
    shutil.copytree(whole / "runs" / "run-2", other / "runs" / "run-2")
    # A run that lies in both counts once.
    assert report(tmp_path / "two", whole, other) == expected
    shutil.rmtree(whole / "runs" / "run-2")
    assert report(tmp_path / "three", whole, other) == expected
    assert report(tmp_path / "four", whole) != expected


def test_of_a_run_in_two_roots_the_finished_one_counts(tmp_path: Path) -> None:
    run = sample_run("run-0")
    write_runs([run], tmp_path / "done")
    shutil.copytree(tmp_path / "done", tmp_path / "cut")
    journal = tmp_path / "cut" / "runs" / "run-0" / "journal.jsonl"
    journal.write_bytes(b"".join(journal.read_bytes().splitlines(keepends=True)[:2]))
    expected = report(tmp_path / "one", tmp_path / "done")
    assert report(tmp_path / "two", tmp_path / "cut", tmp_path / "done") == expected


@pytest.fixture
def memory(whole: Path) -> Iterator[str]:
    """The results in fsspec's memory file system."""
    files = fsspec.filesystem("memory")
    files.put(str(whole), "/results", recursive=True)
    yield "memory://results"
    files.rm("/results", recursive=True)


@pytest.fixture
def http(whole: Path) -> Iterator[str]:
    """The results behind a web server of this machine that lists its folders."""
    pytest.importorskip("aiohttp", reason="aiohttp is not installed")

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(whole)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("kind", ["memory", "http", "file"])
def test_a_report_of_a_url_is_that_of_the_folder(
    kind: str, whole: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    url = f"file://{whole}" if kind == "file" else request.getfixturevalue(kind)
    assert report(tmp_path / "there", url) == report(tmp_path / "here", whole)


def test_a_report_of_a_url_needs_a_folder_to_write_to(
    memory: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["build", "--results", memory, *FORMATS]) == 2
    assert "type --out FOLDER" in capsys.readouterr().err


def test_a_url_that_nothing_reads_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "s3fs", None)
    with pytest.raises(ConfigError, match=r"s3:// needs s3fs.*pip install"):
        locate("s3://bucket/results")
    with pytest.raises(ConfigError, match="cannot be read"):
        locate("nonsense://x")


def test_a_root_without_runs_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["build", "--results", str(tmp_path), *FORMATS]) == 2
    assert f"{tmp_path / 'runs'}: no such folder" in capsys.readouterr().err
