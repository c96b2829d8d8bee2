"""The installation: quiet where pip succeeds, whatever it warns of; where it fails, its text and status."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "install.py"
PIP = """
import sys
print("Collecting", sys.argv[-1])
print("WARNING: Location 'file:///x' is ignored", file=sys.stderr)
if sys.argv[-1] == "missing":
    print("ERROR: No matching distribution found for missing", file=sys.stderr)
    sys.exit(7)
"""


def installed(package: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """What is printed with a pip that only warns, and knows of no package that is called missing."""
    (folder / "pip").mkdir()
    (folder / "pip" / "__init__.py").touch()
    (folder / "pip" / "__main__.py").write_text(PIP)
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    return subprocess.run(
        [sys.executable, str(SCRIPT), package], env=environment, capture_output=True, text=True, check=False
    )


def test_warnings_of_pip_do_not_reach_the_user(tmp_path: Path) -> None:
    ended = installed("present", tmp_path)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")


def test_a_failure_of_pip_keeps_its_text_and_status(tmp_path: Path) -> None:
    ended = installed("missing", tmp_path)
    assert ended.returncode == 7
    assert "ERROR: No matching distribution found for missing" in ended.stderr


@pytest.mark.parametrize("goal", ["bench", "dev"])
def test_make_installs_with_it(goal: str) -> None:
    lines = (SCRIPT.parents[1] / "Makefile").read_text().split(f".venv/{goal}:")[1].split("\n\n")[0]
    assert "scripts/install.py -c constraints.txt -e" in lines
    assert "pip install" not in lines
