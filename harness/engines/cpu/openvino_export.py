"""Weights in OpenVINO's own format, written once by optimum-intel in the engine's environment."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import filelock

from harness.config import ConfigError
from harness.engines.engine import Note
from harness.system.files import PART
from harness.system.progress import waiting
from harness.target.checkpoint import fingerprint
from harness.target.smollm2 import cache_root

_ARCHITECTURE = "LlamaForCausalLMEagle3"
"""The architecture by which optimum-intel knows an EAGLE-3 head."""
_SHOWN = 600


def exported(folder: Path, python: str, note: Note) -> Path:
    """The folder of a model in OpenVINO's format and float32, exported on first use.

    python: the interpreter of an environment that has `optimum-intel[openvino]`.

    Raises:
        ConfigError: the export failed; with what it said last.
    """
    out = cache_root() / "openvino" / f"{folder.name}-{fingerprint(folder)}-f32"
    out.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(out.with_name(f"{out.name}.lock")):
        if not out.is_dir():
            part = out.with_name(out.name + PART)
            shutil.rmtree(part, ignore_errors=True)
            note(f"exporting {folder} to OpenVINO's format (once)")
            _export(folder, python, part)
            part.rename(out)
    return out


def exported_head(folder: Path, python: str, note: Note) -> Path:
    """The folder of an EAGLE-3 head in OpenVINO's format; `exported` says the rest."""
    renamed = cache_root() / "openvino" / f"{folder.name}-{fingerprint(folder)}-source"
    if not renamed.is_dir():
        part = renamed.with_name(renamed.name + PART)
        shutil.rmtree(part, ignore_errors=True)
        shutil.copytree(folder, part)
        file = part / "config.json"
        config = json.loads(file.read_text(encoding="utf-8"))
        file.write_text(json.dumps({**config, "architectures": [_ARCHITECTURE]}), encoding="utf-8")
        part.rename(renamed)
    return exported(renamed, python, note)


def _export(folder: Path, python: str, out: Path) -> None:
    arguments = ["--model", str(folder), "--task", "text-generation-with-past", "--weight-format", "fp32"]
    command = [python, "-m", "optimum.commands.optimum_cli", "export", "openvino", *arguments, str(out)]
    with waiting("exporting the weights", usual_s=60):
        try:
            found = subprocess.run(command, capture_output=True, text=True, check=False)
        except OSError as error:
            raise ConfigError(f"engine.python={python}: cannot be run ({error})") from error
    if found.returncode:
        said = (found.stdout + found.stderr).strip()[-_SHOWN:]
        raise ConfigError(
            f"engine=openvino: {folder} could not be exported; its environment needs `pip install"
            f" optimum-intel[openvino]`. It said: {said}"
        )
