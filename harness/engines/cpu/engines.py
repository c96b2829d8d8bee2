"""llama.cpp and OpenVINO GenAI as engines: their command lines and settings."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from typing_extensions import override

from harness.config import ConfigError, configurable, near
from harness.engines.clients.native import LlamaCppClient
from harness.engines.clients.streams import Client
from harness.engines.cpu.gguf_file import gguf_of
from harness.engines.cpu.gguf_head import gguf_of_head
from harness.engines.cpu.openvino_export import exported, exported_head
from harness.engines.engine import Note, Workload
from harness.engines.heads import head_folder
from harness.engines.servers.launched import LaunchedEngine, only
from harness.engines.servers.served import ServedArm

_HERE = Path(__file__).parent
_LLAMACPP: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("ngram-simple", "ngram-map-k", "ngram-map-k4v"), ("size_n", "size_m", "min_hits")),
    "ngram-mod": ("n_match", "n_min", "n_max"),
    "ngram-cache": (),
    **dict.fromkeys(("draft-simple", "draft-dflash"), ("model", "n_max", "n_min", "p_min")),
    "draft-eagle3": ("model", "head", "n_max", "n_min", "p_min"),
}
"""What llama.cpp's drafts are set by, by their type."""


@configurable
class _CpuEngine(LaunchedEngine):
    """What both engines have."""

    threads: int | None = Field(default=None, ge=1)
    """Threads of each server; None is as many as torch takes here."""

    @property
    def num_threads(self) -> int:
        """Threads of each server."""
        return self.threads or torch.get_num_threads()


@configurable
class LlamaCpp(_CpuEngine):
    """llama.cpp's server, from the wheel `xllamacpp` or from a binary that was built for this machine."""

    name: ClassVar[str] = "llamacpp"
    packages: ClassVar[tuple[str, ...]] = ("xllamacpp",)
    binary: str = ""
    """A `llama-server`; "" takes the wheel, which is not built for this machine's processor."""
    gguf: str = ""
    """A GGUF file of the target; "" writes one in float32 from its weights."""
    cache: Literal["f32", "f16"] = "f32"
    """The dtype of the key/value cache; llama.cpp's default is f16."""

    @property
    @override
    def interpreter(self) -> str:
        return str(Path(self.binary).expanduser()) if self.binary else super().interpreter

    @override
    def installed_version(self) -> str:
        if not self.binary:
            return super().installed_version()
        try:
            found = subprocess.run(
                [self.interpreter, "--version"], capture_output=True, text=True, check=True
            )
        except (OSError, subprocess.CalledProcessError) as error:
            raise ConfigError(f"engine.binary={self.binary}: cannot be run ({error})") from error
        return next(line for line in (found.stdout + found.stderr).splitlines() if "version" in line).strip()

    @override
    def location(self, note: Note) -> str:
        if self.gguf:
            return str(Path(self.gguf).expanduser().resolve())
        return str(gguf_of(self._folder(note, "engine.gguf=FILE"), self.outline.tokenizer))

    def _folder(self, note: Note, instead: str) -> Path:
        """The folder with the target's checkpoint."""
        folder = Path(super().location(note))
        if not folder.is_dir():
            raise ConfigError(f"target.path={folder}: no folder here; type {instead}")
        return folder

    def settings(self, arm: ServedArm) -> dict[str, Any]:
        """What an arm drafts with; a head of ours is converted on first use.

        Raises:
            ConfigError: llama.cpp has no such type, the type no such setting, or the head is none that is
                converted here.
        """
        found = llamacpp_settings(arm)
        if "head" in found:
            folder = head_folder(str(found.pop("head")), f"methods.{arm.name}.serve.llamacpp")
            target = self._folder(self._note, "serve.llamacpp.model=FILE instead of head=")
            found["model"] = str(gguf_of_head(folder, target, self.outline.tokenizer))
        return found

    @override
    def command(self, arm: ServedArm, location: str, port: str) -> list[str]:
        context, slots, threads = (
            str(number) for number in (self.outline.max_context, self._workload.batch_size, self.num_threads)
        )
        settings = self.settings(arm)
        if self.binary:
            whole = str(self.outline.max_context * self._workload.batch_size)
            command = ["-m", location, "--host", "127.0.0.1", "--port", port, "-c", whole, "-np", slots]
            command += ["-t", threads, "-tb", threads, "-ctk", self.cache, "-ctv", self.cache]
            return [*command, *binary_flags(settings), *self.arguments]
        command = [str(_HERE / "llamacpp_worker.py"), "--port", port, "--model", location]
        command += ["--context", context, "--slots", slots, "--threads", threads, "--cache", self.cache]
        return [*command, *(["--settings", json.dumps(settings)] if settings else []), *self.arguments]

    @override
    def client(self, name: str, url: str) -> Client:
        return LlamaCppClient(url, silence_s=self.silence_s)


def llamacpp_settings(arm: ServedArm) -> dict[str, Any]:
    """What an arm drafts with in llama.cpp; empty for vanilla.

    Raises:
        ConfigError: llama.cpp has no such type, or the type no such setting.
    """
    if not arm.settings:
        return {}
    where, kind = f"methods.{arm.name}.serve.llamacpp", str(arm.settings.get("type"))
    if kind not in _LLAMACPP:
        raise ConfigError(
            f"{where}.type={kind}: unknown.{near(kind, _LLAMACPP)} Allowed: {', '.join(_LLAMACPP)}"
        )
    found = only(arm.settings, ("type", *_LLAMACPP[kind]), where)
    if "model" in _LLAMACPP[kind] and "head" not in found:
        if not str(found.get("model")).endswith(".gguf"):
            raise ConfigError(f"{where}.model={found.get('model')}: a GGUF file of the drafter is needed")
        found["model"] = str(Path(str(found["model"])).expanduser().resolve())
    return found


def binary_flags(settings: Mapping[str, Any]) -> list[str]:
    """The same settings as flags of `llama-server`."""
    if not settings:
        return []
    kind = str(settings["type"])
    begin = "--spec-draft" if kind.startswith("draft") else f"--spec-{kind}"
    found = ["--spec-type", kind]
    for key, value in settings.items():
        if key != "type":
            found += [f"{begin}-{key.replace('_', '-')}", str(value)]
    return found


@configurable
class OpenVINO(_CpuEngine):
    """OpenVINO GenAI's pipeline in float32, one request at a time."""

    name: ClassVar[str] = "openvino"
    packages: ClassVar[tuple[str, ...]] = ("openvino-genai",)

    @override
    def prepare(self, workload: Workload, note: Note) -> None:
        if workload.batch_size > 1:
            raise ConfigError(
                f"measure.batch_size={workload.batch_size}: engine=openvino answers one request at a time;"
                " type measure.batch_size=1"
            )
        super().prepare(workload, note)

    @override
    def location(self, note: Note) -> str:
        folder = Path(super().location(note))
        if not folder.is_dir():
            raise ConfigError(
                f"target.path={folder}: no folder here; download it and type target.path=FOLDER"
            )
        return str(exported(folder, self.interpreter, note))

    @override
    def command(self, arm: ServedArm, location: str, port: str) -> list[str]:
        settings = self.settings(arm)
        command = [str(_HERE / "openvino_worker.py"), "--port", port, "--model", location]
        command += ["--threads", str(self.num_threads), "--end-token", str(self.outline.end_token_ids[0])]
        return [*command, *(["--settings", json.dumps(settings)] if settings else []), *self.arguments]

    def settings(self, arm: ServedArm) -> dict[str, Any]:
        """What an arm drafts with: a lookup by n-grams, or a head that is exported on first use.

        Raises:
            ConfigError: there is another setting.
        """
        where = f"methods.{arm.name}.serve.openvino"
        found = only(arm.settings, ("num_assistant_tokens", "max_ngram_size", "head"), where)
        if "head" in found:
            folder = head_folder(str(found.pop("head")), where)
            found["draft_model"] = str(exported_head(folder, self.interpreter, self._note))
        return found

    @override
    def client(self, name: str, url: str) -> Client:
        return LlamaCppClient(url, silence_s=self.silence_s)
