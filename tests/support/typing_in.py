"""A command line typed in this process, which saves the imports of another one."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import pytest

from harness.bench import bench
from harness.cli import hydra_app


def type_bench(
    arguments: Sequence[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> tuple[int, str, str]:
    """Exit status, stdout and stderr of `python -m harness.bench ARGUMENTS`."""
    monkeypatch.setattr(sys, "argv", ["bench", *arguments])
    capsys.readouterr()
    try:
        status = hydra_app.main(bench)
    except SystemExit as exit_:
        status = int(exit_.code or 0)
    return status, *capsys.readouterr()
