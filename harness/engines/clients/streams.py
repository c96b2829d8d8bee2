"""One streamed answer: what is asked, what arrives and when, and what can go wrong on the way."""

from __future__ import annotations

import json
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import httpx2

from harness.engines.faults import EngineFault

_SHOWN = 300
"""Characters of an answer that a message quotes."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """One request, in no server's dialect."""

    prompt: Sequence[int]
    """Token ids."""
    max_tokens: int
    temperature: float
    top_k: int
    """0 switches the filter off."""
    top_p: float
    seed: int
    ignore_end: bool
    """Whether the answer continues behind an end token."""


class EngineCounts(NamedTuple):
    """What an engine counted of some requests; `rounds` are those with a draft, None if it does not say."""

    rounds: int | None
    drafted: int
    accepted: int


@dataclass(kw_only=True)
class Reply:
    """An answer as it arrives."""

    ids: list[int] = field(default_factory=list)
    text: str = ""
    arrived: list[int] = field(default_factory=list)
    """Tokens of each burst."""
    at_ns: list[int] = field(default_factory=list)
    """The monotonic clock at each burst."""
    finish: str | None = None
    """`stop` behind an end token, `length` at the cap; None until the engine says it."""
    counts: EngineCounts | None = None
    num_reported: int | None = None
    """Tokens of the answer as the engine counts them."""

    def take(self, ids: Sequence[int], text: str = "") -> None:
        """A burst has arrived now; empty ones are no bursts."""
        self.text += text
        if ids:
            self.at_ns.append(time.perf_counter_ns())
            self.arrived.append(len(ids))
            self.ids += ids

    def check(self, question: Question, vocab_size: int) -> None:
        """Refuse an answer that cannot be one.

        Raises:
            EngineFault: it has no end, or tokens that do not exist, or more of them than asked for.
        """
        if self.finish is None:
            text = f"the stream ended after {len(self.ids)} tokens without an end"
            raise EngineFault("engine-cut-off", text)
        if self.finish not in ("stop", "length"):
            raise EngineFault("engine-error", f"the answer ended because of {self.finish!r}")
        wrong = [token for token in self.ids if not 0 <= token < vocab_size]
        if wrong:
            raise EngineFault("engine-garbage", f"token {wrong[0]} is outside of 0..{vocab_size - 1}")
        if len(self.ids) > question.max_tokens:
            text = f"{len(self.ids)} tokens, where {question.max_tokens} were asked for"
            raise EngineFault("engine-garbage", text)

    def close(self, end_token_ids: Collection[int]) -> None:
        """Add the end token that an engine met and kept to itself."""
        if self.finish == "stop" and end_token_ids and self.ids[-1:] and self.ids[-1] not in end_token_ids:
            self.ids.append(min(end_token_ids))


class Client(ABC):
    """Speaks one server's dialect. Its coroutines run in one event loop."""

    def __init__(self, url: str, *, silence_s: float, api_key: str | None = None) -> None:
        """url: without a trailing slash. silence_s: seconds without a sign of life that end a request."""
        self.url = url
        self._silence_s = silence_s
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self.http = httpx2.AsyncClient(
            base_url=url,
            headers=headers,
            timeout=httpx2.Timeout(silence_s, pool=None),
            limits=httpx2.Limits(max_connections=None),
            # The environment's proxies are not meant for a server on this machine.
            trust_env=False,
        )

    @abstractmethod
    async def stream(self, question: Question, reply: Reply) -> None:
        """Ask, and fill `reply` while the answer arrives.

        Raises:
            EngineFault: whatever is no answer.
        """

    async def metrics(self) -> str | None:
        """The text of the server's Prometheus metrics; None where it has none."""
        try:
            found = await self.http.get("/metrics")
        except httpx2.HTTPError:
            return None
        return found.text if found.status_code == 200 else None

    async def close(self) -> None:
        """Give connections back."""
        await self.http.aclose()

    async def events(self, path: str, body: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        """The JSON objects of a stream of server-sent events.

        Raises:
            EngineFault: see `FaultKind`.
        """
        try:
            async with self.http.stream("POST", path, json=body) as response:
                if response.status_code != 200:
                    said = (await response.aread()).decode(errors="replace")
                    raise status_fault(response.status_code, said)
                async for line in response.aiter_lines():
                    if not line.startswith("data:") or line.endswith("[DONE]"):
                        continue
                    yield parsed(line.removeprefix("data:"))
        except httpx2.HTTPError as error:
            raise transport_fault(error, self.url, self._silence_s) from error


def parsed(text: str) -> dict[str, Any]:
    """A JSON object; raises EngineFault if the text is something else."""
    try:
        found = json.loads(text)
    except ValueError as error:
        raise EngineFault("engine-garbage", f"no JSON: {text.strip()[:_SHOWN]!r}") from error
    if not isinstance(found, dict):
        raise EngineFault("engine-garbage", f"no JSON object: {text.strip()[:_SHOWN]!r}")
    return found


def status_fault(status: int, said: str) -> EngineFault:
    """The fault that an HTTP status means. A refusal is final, an error of the server may not come again."""
    text = f"HTTP status {status}: {said.strip()[:_SHOWN]}"
    if status in (401, 403, 404):
        return EngineFault("engine-refused", text, fatal=True)
    return EngineFault("engine-refused" if 400 <= status < 500 else "engine-error", text)


def transport_fault(error: httpx2.HTTPError, url: str, silence_s: float) -> EngineFault:
    """The fault that an error of the connection means."""
    if isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout):
        return EngineFault("engine-refused", f"{url}: nothing answers there ({error})", fatal=True)
    if isinstance(error, httpx2.TimeoutException):
        return EngineFault("engine-silent", f"{url}: nothing came for {silence_s:g} s")
    return EngineFault("engine-cut-off", f"{url}: the connection ended ({error or type(error).__name__})")
