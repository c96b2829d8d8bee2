"""The console: everything goes to stderr, and a failing report is a warning."""

from __future__ import annotations

import io

import pytest

from harness.system.console import Console, warn_on_error


def test_the_console_writes_to_stderr_only(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console()
    console.note("a note")
    console.warn("careful")
    console.error(ValueError("wrong"))
    console.table(["method", "tau"], [["ngram", "1.50"]], title="A table")
    said = capsys.readouterr()
    assert said.out == ""
    for text in ("a note", "warning: careful", "error: wrong", "A table", "ngram", "1.50"):
        assert text in said.err


def test_an_error_of_a_report_is_one_warning_line() -> None:
    file = io.StringIO()
    with warn_on_error(Console(file), "drawing"):
        raise RuntimeError("start\nfailed")
    assert file.getvalue() == (
        "warning: drawing failed (RuntimeError: start failed). The run itself is safe in the store.\n"
    )
