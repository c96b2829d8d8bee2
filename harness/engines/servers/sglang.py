"""SGLang, started as its server and asked over `/generate`."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from typing_extensions import override

from harness.config import ConfigError, configurable, near
from harness.engines.clients.native import SGLangClient
from harness.engines.clients.streams import Client
from harness.engines.heads import head_location
from harness.engines.servers.launched import LaunchedEngine, flags
from harness.engines.servers.served import ServedArm

_TREE = {
    "num_steps": "--speculative-num-steps",
    "topk": "--speculative-eagle-topk",
    "num_draft_tokens": "--speculative-num-draft-tokens",
}
_NGRAM = {
    "num_draft_tokens": "--speculative-num-draft-tokens",
    "match_type": "--speculative-ngram-match-type",
    "max_trie_depth": "--speculative-ngram-max-trie-depth",
    "min_bfs_breadth": "--speculative-ngram-min-bfs-breadth",
    "max_bfs_breadth": "--speculative-ngram-max-bfs-breadth",
    "capacity": "--speculative-ngram-capacity",
}
_ALGORITHMS = {"EAGLE": _TREE, "EAGLE3": _TREE, "NEXTN": _TREE, "STANDALONE": _TREE, "NGRAM": _NGRAM}
_WITHOUT_HEAD = ("NGRAM", "NEXTN")


@configurable
class SGLang(LaunchedEngine):
    """`sglang.launch_server`; every request says how many verify steps it took."""

    name: ClassVar[str] = "sglang"
    packages: ClassVar[tuple[str, ...]] = ("sglang",)
    mem_fraction_static: float | None = Field(default=None, gt=0, lt=1)
    """Share of a GPU's memory for weights and cache; None is SGLang's own."""

    @override
    def command(self, arm: ServedArm, location: str, port: str) -> list[str]:
        target = self._spec
        command = [
            "-m",
            "sglang.launch_server",
            "--model-path",
            location,
            "--host",
            "127.0.0.1",
            "--port",
            port,
        ]
        command += ["--dtype", target.dtype, "--context-length", str(self.outline.max_context)]
        # Repeats of one prompt must not skip its prefill.
        command += ["--disable-radix-cache", "--skip-server-warmup", "--enable-metrics", "--random-seed", "0"]
        command += ["--sampling-defaults", "openai"]
        if target.resolved_device().type == "cpu":
            command += ["--device", "cpu"]
        if target.trust_remote_code:
            command.append("--trust-remote-code")
        if target.tensor_parallel > 1:
            command += ["--tp-size", str(target.tensor_parallel)]
        if self.mem_fraction_static is not None:
            command += ["--mem-fraction-static", str(self.mem_fraction_static)]
        return [*command, *speculative_flags(arm), *self.arguments]

    @override
    def client(self, name: str, url: str) -> Client:
        return SGLangClient(url, silence_s=self.silence_s)


def speculative_flags(arm: ServedArm) -> list[str]:
    """SGLang's flags for what an arm drafts; none for vanilla.

    `num_drafted` is what others call the number of drafted tokens; everything else has SGLang's own name.

    Raises:
        ConfigError: it has no such algorithm, or the algorithm no such setting.
    """
    if not arm.settings:
        return []
    where, settings = f"methods.{arm.name}.serve.sglang", dict(arm.settings)
    algorithm = str(settings.pop("algorithm", None))
    if algorithm not in _ALGORITHMS:
        raise ConfigError(
            f"{where}.algorithm={algorithm}: unknown.{near(algorithm, _ALGORITHMS)} Allowed:"
            f" {', '.join(_ALGORITHMS)}"
        )
    model = settings.pop("model", None)
    if (model is None) != (algorithm in _WITHOUT_HEAD):
        word = "not given" if model is None else "takes none"
        raise ConfigError(f"{where}.model: {word}; algorithm={algorithm}")
    if (num_drafted := settings.pop("num_drafted", None)) is not None:
        # The pending token counts as one of SGLang's draft tokens.
        settings["num_draft_tokens"] = int(num_drafted) + 1
    found = ["--speculative-algorithm", algorithm]
    if model is not None:
        found += ["--speculative-draft-model-path", head_location(str(model))]
    return found + flags(settings, _ALGORITHMS[algorithm], where)
