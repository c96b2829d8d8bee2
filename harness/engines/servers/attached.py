"""Any server that speaks OpenAI's dialect and was started by somebody else."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field
from typing_extensions import override

from harness.config import ConfigError, configurable, near
from harness.engines.clients.native import LlamaCppClient, SGLangClient
from harness.engines.clients.openai_client import OpenAIClient
from harness.engines.clients.streams import Client, Reply
from harness.engines.engine import Method, Note, ServedModel
from harness.engines.faults import EngineFault
from harness.engines.servers.served import ServedArm, ServedEngine
from harness.target.spec import TargetSpec


@configurable
class Attached(ServedEngine):
    """Asks servers at given URLs, one per arm. What they draft with, and on what, only their owner knows."""

    name: ClassVar[str] = "server"
    urls: dict[str, str]
    """The base URL of each arm's server, without `/v1`; `vanilla` must be among them."""
    models: dict[str, str] = Field(default_factory=dict)
    """The model's name at the server of each arm; an arm that is not named takes the only one there is."""
    dialect: Literal["openai", "sglang", "llamacpp"] = "openai"
    """`/v1/completions`, or the native endpoint of one of the others."""
    api_key_variable: str = "OPENAI_API_KEY"
    """Environment variable that holds the key, where the servers want one."""
    ids: Literal["returned", "text"] = "returned"
    """`text` takes the tokenizer's ids of the answer's text where a server sends no ids, which are not always
    those that it generated; the card says so."""

    @override
    def arm(self, name: str, node: dict[str, Any], serve: Mapping[str, Any]) -> Method:
        # Whatever the method: its server was started with it, or was not; that is not known here.
        return ServedArm(name=name)

    @override
    def device_facts(self, target: TargetSpec) -> dict[str, Any]:
        return {"type": "server", "name": ", ".join(sorted(set(self.urls.values())))}

    @override
    def load(self, target: TargetSpec, arms: Mapping[str, Method], note: Note) -> ServedModel:
        for name in arms:
            if name not in self.urls:
                raise ConfigError(
                    f"engine.urls.{name}: no server is given for methods.{name}.{near(name, self.urls)} Type"
                    f" +engine.urls.{name}=http://HOST:PORT, or leave the method out with ~methods.{name}"
                )
        model = super().load(target, arms, note)
        for name, arm in self._arms.items():
            arm.loaded = {"url": self.urls[name], "unknown": "version, settings and weights of the server"}
        return model

    @override
    def facts(self) -> dict[str, Any]:
        return {"dialect": self.dialect, "ids": self.ids}

    @override
    def ready(self, name: str) -> Client:
        if name not in self._clients:
            url = self.urls[name].rstrip("/")
            key = os.environ.get(self.api_key_variable)
            if self.dialect == "openai":
                model = self.models.get(name) or self._run(_only_model(url, key, self.silence_s))
                self._clients[name] = OpenAIClient(url, model, silence_s=self.silence_s, api_key=key)
            else:
                kind = SGLangClient if self.dialect == "sglang" else LlamaCppClient
                self._clients[name] = kind(url, silence_s=self.silence_s, api_key=key)
        return self._clients[name]

    @override
    def _complete(self, reply: Reply) -> None:
        if reply.ids or not reply.text:
            return
        if self.ids == "returned":
            raise EngineFault(
                "engine-garbage",
                "the server sends text without token ids. Type engine.ids=text to take the tokenizer's ids of"
                " its text, which may differ from those that it generated",
                fatal=True,
            )
        reply.ids = list(self.outline.tokenizer(reply.text, add_special_tokens=False)["input_ids"])


async def _only_model(url: str, key: str | None, silence_s: float) -> str:
    """The name of the only model that a server has.

    Raises:
        EngineFault: it cannot be reached.
        ConfigError: it has none, or several.
    """
    client = OpenAIClient(url, "", silence_s=silence_s, api_key=key)
    try:
        return await client.only_model()
    finally:
        await client.close()
