"""Weights in OpenVINO's own format, written once by optimum-intel in the engine's environment."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import filelock

from harness.config import ConfigError
from harness.engines.engine import Note
from harness.engines.heads import tapped_blocks
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
    return _once(folder, note, lambda part: _export(folder, python, part))


def exported_head(folder: Path, python: str, note: Note) -> Path:
    """The folder of an EAGLE-3 head in OpenVINO's format; `exported` says the rest.

    The environment needs diffusers and einops, too: optimum-intel's EAGLE-3 is in a module that imports them.
    The pipeline itself gives the head the target's embedding.
    """

    def export(part: Path) -> None:
        with tempfile.TemporaryDirectory() as place:
            for file in folder.glob("*.safetensors"):
                shutil.copy(file, place)
            config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            renamed = {**config, "architectures": [_ARCHITECTURE]}
            if taps := tapped_blocks(config):
                renamed["hidden_layers_list"] = list(taps)
            (Path(place) / "config.json").write_text(json.dumps(renamed), encoding="utf-8")
            # optimum-intel loads its own code as if it came with the weights; there is none beside them.
            _export(Path(place), python, part, "--trust-remote-code")

    return _once(folder, note, export)


def _once(folder: Path, note: Note, export: Callable[[Path], None]) -> Path:
    """The folder that `export` has made, in this process or in an earlier one."""
    out = cache_root() / "openvino" / f"{folder.name}-{fingerprint(folder)}-f32"
    out.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(out.with_name(f"{out.name}.lock")):
        if not out.is_dir():
            part = out.with_name(out.name + PART)
            shutil.rmtree(part, ignore_errors=True)
            note(f"exporting {folder} to OpenVINO's format (once)")
            export(part)
            part.rename(out)
    return out


def _export(folder: Path, python: str, out: Path, *further: str) -> None:
    arguments = ["--model", str(folder), "--task", "text-generation-with-past", "--weight-format", "fp32"]
    arguments += further
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
            f" optimum-intel[openvino]`, and for a head diffusers and einops. It said: {said}"
        )
