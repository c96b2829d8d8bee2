"""The base of engines that answer over HTTP: arms, load, streams, and what a generation is made of."""

from __future__ import annotations

import asyncio
import random
import time
from abc import abstractmethod
from collections import Counter
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from pydantic import Field
from typing_extensions import override

from harness.config import ConfigError, configurable
from harness.decoding.acceptance import Acceptor
from harness.decoding.batch import Generation, Request, Stop
from harness.decoding.sampling import DecodingParams
from harness.drafting.drafter import TRAINING_PROMPTS
from harness.engines.clients.arrivals import closed_loop, open_loop, poisson_offsets_ns
from harness.engines.clients.counters import counts_between
from harness.engines.clients.streams import Client, EngineCounts, Question, Reply
from harness.engines.engine import Engine, Method, Note, ServedModel, Workload
from harness.engines.faults import EngineFault
from harness.engines.heads import head_location
from harness.engines.outline import Outline, outline
from harness.target.model import Target
from harness.target.spec import TargetSpec

Found = TypeVar("Found")
_PLAIN = "vanilla"
"""The arm that drafts nothing, and needs no settings."""


@dataclass(kw_only=True)
class ServedArm:
    """An arm that a server decodes: how this server is set to draft."""

    name: str
    settings: dict[str, Any] = field(default_factory=dict)
    """What the method's YAML says under `serve.ENGINE`; empty for vanilla."""
    samples: ClassVar[bool] = True
    knowledge: str = "call"
    loaded: dict[str, Any] = field(default_factory=dict)
    """What was started for it; JSON types."""

    @property
    def training_prompts(self) -> Sequence[Path]:
        """Beside the head that the server drafts with, if it is in a folder here."""
        named = (self.settings.get(key) for key in ("head", "model"))
        files = (Path(head_location(str(head))) / TRAINING_PROMPTS for head in named if head)
        return [file for file in files if file.is_file()]

    def card(self) -> dict[str, Any]:
        """How the server of this arm is run."""
        return self.loaded


@configurable
class Goodput:
    """The latency that a request has to keep to count as good."""

    first_token_s: float | None = Field(default=None, gt=0)
    per_token_s: float | None = Field(default=None, gt=0)
    """Seconds per output token behind the first one, on average over the request."""
    request_s: float | None = Field(default=None, gt=0)


@configurable
class ServedEngine(Engine):
    """Asks servers for streamed answers, as many at once as `measure.batch_size` says.

    With `request_rate`, requests come as a Poisson process instead, whether or not earlier ones are answered.
    """

    request_rate: float | None = Field(default=None, gt=0)
    """Requests per second; None keeps `measure.batch_size` requests running. Arms get the same arrivals."""
    most_at_once: int | None = Field(default=None, ge=1)
    """With `request_rate`, the most requests that run together; None: no limit."""
    load_seed: int = 0
    """Seed of the arrivals, and of the order in which the requests of a block are sent."""
    silence_s: float = Field(default=300.0, gt=0)
    """Seconds without a sign of life after which a request has failed."""
    goodput: Goodput = Field(default_factory=Goodput)
    """Limits that reports count good requests by."""
    explain: bool = True
    """Whether the first difference from vanilla is explained by the target's weights, loaded here once there
    is one. Without, the rate of differences beside that of vanilla's repeats decides alone."""

    @override
    def arm(self, name: str, node: dict[str, Any], serve: Mapping[str, Any]) -> Method:
        if name == _PLAIN:
            return ServedArm(name=name)
        if self.name not in serve:
            known = ", ".join(sorted(serve)) or "none"
            raise ConfigError(
                f"methods.{name}: engine={self.name} has no such method, or its YAML has no serve.{self.name}"
                f" (engines that have it: {known}). Leave it out with ~methods.{name}, or type"
                f" +methods.{name}.serve.{self.name}.KEY=VALUE"
            )
        return ServedArm(name=name, settings=dict(serve[self.name] or {}))

    @override
    def baseline(self, target: TargetSpec) -> str:
        return "served"

    @override
    def refuse(self, arms: Mapping[str, Method], rungs: Mapping[str, Method], acceptor: Acceptor) -> None:
        super().refuse(arms, rungs, acceptor)
        if acceptor.name != "coupled":
            raise ConfigError(
                f"acceptor: engine={self.name} accepts drafted tokens by its own rule, not by"
                f" {acceptor.name}; type accept=coupled"
            )

    @override
    def load(self, target: TargetSpec, arms: Mapping[str, Method], note: Note) -> ServedModel:
        self._spec, self._note = target, note
        self._arms = {name: arm for name, arm in arms.items() if isinstance(arm, ServedArm)}
        self._outline = outline(target, note)
        self._runner: asyncio.Runner | None = None
        self._clients: dict[str, Client] = {}
        self._calls: Counter[str] = Counter()
        return ServedModel(
            tokenizer=self._outline.tokenizer,
            end_token_ids=self._outline.end_token_ids,
            max_context=self._outline.max_context,
            vocab_size=self._outline.vocab_size,
            card={**self._outline.card, "max_context": self._outline.max_context, **self.facts()},
        )

    def facts(self) -> dict[str, Any]:
        """What is known of the engine itself, for the card of the target; JSON types."""
        return {}

    @override
    def prepare(self, workload: Workload, note: Note) -> None:
        self._workload = workload
        if self.request_rate is not None and workload.batch_size == 1:
            raise ConfigError(
                "engine.request_rate: with measure.batch_size=1 a block is one request, and nothing arrives"
                " while it runs; type measure.batch_size=8 +measure.waves=4 for blocks of 32 requests"
            )

    @property
    def outline(self) -> Outline:
        """The target without its weights, once `load` has found it."""
        return self._outline

    @override
    def begin_run(self, logs: Path | None = None) -> None:
        if logs is not None:
            self._logs = logs
        for name in self._arms:
            self.ready(name)

    @abstractmethod
    def ready(self, name: str) -> Client:
        """The client of an arm, whose server runs and answers.

        Raises:
            EngineFault: it does not.
        """

    @override
    def generate(
        self,
        requests: Sequence[Request],
        method: Method,
        params: DecodingParams,
        acceptor: Acceptor,
        same_question: bool = False,
    ) -> list[Generation]:
        assert isinstance(method, ServedArm), "`arm` makes no others"
        client = self.ready(method.name)
        self._calls[method.name] += 1
        try:
            return self._run(self._answer(client, requests, params, self._calls[method.name]))
        except EngineFault as fault:
            raise self.known(method.name, fault) from fault

    def known(self, name: str, fault: EngineFault) -> EngineFault:
        """A fault of the server of an arm with what is known here of its reason."""
        return EngineFault(fault.kind, f"{name}: {fault}", fault.fatal)

    def _run(self, work: Coroutine[Any, Any, Found]) -> Found:
        if self._runner is None:
            self._runner = asyncio.Runner()
        try:
            return self._runner.run(work)
        except BaseExceptionGroup as group:
            # The other requests were cancelled because of the first fault.
            raise _first(group) from group

    async def _answer(
        self, client: Client, requests: Sequence[Request], params: DecodingParams, call: int
    ) -> list[Generation]:
        room = self._outline.max_context
        questions = [question_of(request, params, room) for request in requests]

        async def ask(number: int, due_ns: int) -> tuple[Reply, int]:
            reply = Reply()
            await client.stream(questions[number], reply)
            self._complete(reply)
            reply.check(questions[number], self._outline.vocab_size)
            if not params.ignore_end_token:
                reply.close(self._outline.end_token_ids)
            return reply, due_ns

        order = list(range(len(requests)))
        # Another order in every call, so that vanilla's repeats meet other neighbours in their batches.
        random.Random(f"{self.load_seed}:{call}").shuffle(order)
        before = await client.metrics()
        begin = time.perf_counter_ns()
        if self.request_rate is None:
            answers = await closed_loop(ask, order, self._workload.batch_size)
        else:
            seed = f"{self.load_seed}:{requests[0].key}"
            offsets = poisson_offsets_ns(len(order), self.request_rate, seed)
            answers = await open_loop(ask, order, offsets, self.most_at_once)
        total_ns = time.perf_counter_ns() - begin
        counted = counts_between(before, await client.metrics())
        shared = [counted, *([EngineCounts(0, 0, 0)] * (len(requests) - 1))] if counted else None
        if shared is not None:
            for (reply, _), counts in zip(answers, shared, strict=True):
                reply.counts = counts
        share_ns = total_ns // len(requests) if self._workload.timed else None
        return [
            generation_of(reply, due_ns, share_ns, len(question.prompt) + len(reply.ids) >= room)
            for (reply, due_ns), question in zip(answers, questions, strict=True)
        ]

    def _complete(self, reply: Reply) -> None:
        """Fill in ids where a server sends only text; an engine that always has ids leaves this alone."""

    @cached_property
    def _reference(self) -> Target:
        self._note(f"target {self._spec.name}: loading its weights here, to explain a difference of tokens")
        weights = self._spec.load(self._note)
        return Target(weights.model, self._spec.attention, "plain", "dynamic", False)

    @property
    @override
    def reference(self) -> Target | None:
        return self._reference if self.explain and self._outline.location is not None else None

    @override
    def close(self) -> None:
        if getattr(self, "_runner", None) is not None:
            assert self._runner is not None
            for client in self._clients.values():
                self._runner.run(client.close())
            self._runner.close()
            self._runner = None
        self._clients = {}


def question_of(request: Request, params: DecodingParams, max_context: int) -> Question:
    """What a request asks of a server whose sequences have room for `max_context` tokens."""
    return Question(
        prompt=list(request.prompt),
        max_tokens=min(params.max_new_tokens, max_context - len(request.prompt)),
        temperature=params.temperature,
        top_k=params.top_k,
        top_p=params.top_p,
        seed=request.key & 0x7FFFFFFF,
        ignore_end=params.ignore_end_token,
    )


def generation_of(reply: Reply, due_ns: int, share_ns: int | None, is_full: bool) -> Generation:
    """What a reply is in the ledger.

    share_ns: its share of the time of its call; None where the clock does not count. is_full: whether it
    ended because the context did.
    """
    stop: Stop = "end" if reply.finish == "stop" else "context" if is_full else "cap"
    timed, counts = share_ns is not None, reply.counts
    arrival_ns = [at - due_ns if timed else 0 for at in reply.at_ns]
    return Generation(
        output_ids=reply.ids,
        stop=stop,
        total_ns=share_ns or 0,
        latency_ns=arrival_ns[-1] if arrival_ns else 0,
        first_token_ns=arrival_ns[0] if arrival_ns and timed else None,
        arrived=reply.arrived,
        arrival_ns=arrival_ns,
        engine_rounds=counts.rounds if counts else None,
        engine_drafted=counts.drafted if counts else None,
        engine_accepted=counts.accepted if counts else None,
    )


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The first exception of a group, however deep it is nested."""
    found = group.exceptions[0]
    return _first(found) if isinstance(found, BaseExceptionGroup) else found
