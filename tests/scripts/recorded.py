"""The Python commands that a script of scripts/ would run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser

ROOT = Path(__file__).parents[2]

_PYTHON = """#!{executable}
import json, os, sys
if sys.argv[1] == "-c":
    os.execv({executable!r}, [{executable!r}, *sys.argv[1:]])
print(json.dumps(sys.argv[1:]), file=open({log!r}, "a"))
if "harness.train" in sys.argv:
    rate = next(word for word in sys.argv if word.startswith("training.learning_rate="))
    print(json.dumps({{"tau": float(rate.split("=")[1])}}))
"""


def commands_of(folder: Path, script: str, *arguments: str, **variables: str) -> list[list[str]]:
    """Arguments of every command, none of which is run; a training's tau is its learning rate."""
    log, python = folder / "calls", folder / "python"
    python.write_text(_PYTHON.format(executable=sys.executable, log=str(log)))
    python.chmod(0o755)
    subprocess.run(
        ["bash", ROOT / "scripts" / script, *arguments],
        env={**os.environ, "PYTHON": str(python), **variables},
        check=True,
        stdout=subprocess.DEVNULL,
    )
    return [json.loads(line) for line in log.read_text().splitlines()]


def overrides_of(command: list[str]) -> dict[str, object]:
    """The overrides of a command, by key."""
    words = [word for word in command[2:] if "=" in word]
    return {one.key_or_group: one.value() for one in OverridesParser.create().parse_overrides(words)}
