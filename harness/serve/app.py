"""The HTTP application: models, completions, chat, health and metrics."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import pydantic
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException

from harness.config import ConfigError
from harness.decoding import batch
from harness.decoding.sampling import DecodingParams, stream_key
from harness.serve.api import ChatRequest, CompletionRequest, Kind, Sampling, Shapes, failure, finish_reason
from harness.serve.decoding import Decoder
from harness.serve.jobs import Job, Progress
from harness.serve.limits import SizeLimit
from harness.tasks.conversation import Message

_LISTEN_S = 0.25
"""How often a client that waits for a whole answer is checked for having gone."""
_BROKEN = "\ufffd"
"""What a decoder writes for the beginning of a character whose other bytes are in the next token."""


class Service:
    """Answers requests for one model."""

    def __init__(
        self,
        *,
        name: str,
        decoder: Decoder,
        tokenizer: Any,
        render: Callable[[Sequence[Message]], list[int]],
        max_context: int,
        vocab_size: int,
    ) -> None:
        """render: messages to the token ids of a prompt."""
        self.name, self._decoder, self._tokenizer, self._render = name, decoder, tokenizer, render
        self._max_context, self._vocab_size = max_context, vocab_size

    async def answer(self, kind: Kind, asked: Sampling, prompt: Sequence[int], client: Request) -> Response:
        """The answer to a request, streamed or whole; an error where it cannot be had."""
        if reason := asked.refused or self._misfit(asked, prompt):
            return JSONResponse(failure(reason), 404 if reason.startswith("model") else 400)
        try:
            params = self._params(asked, len(prompt))
        except (ConfigError, pydantic.ValidationError) as error:
            return JSONResponse(failure(str(error)), 400)
        seed = random.getrandbits(32) if asked.seed is None else asked.seed
        job = Job(
            request=batch.Request(prompt=list(prompt), key=stream_key(seed, "", 0, 0)),
            params=params,
            loop=asyncio.get_running_loop(),
        )
        if not self._decoder.submit(job):
            return JSONResponse(failure("too many requests wait", "overloaded"), 503)
        shapes = Shapes(kind, self.name, len(prompt), asked.return_token_ids)
        if asked.stream:
            usage = asked.stream_options is not None and asked.stream_options.include_usage
            return StreamingResponse(self._events(job, shapes, usage), media_type="text/event-stream")
        return await self._whole(job, shapes, client)

    def _misfit(self, asked: Sampling, prompt: Sequence[int]) -> str | None:
        if asked.model not in ("", self.name):
            return f"model {asked.model!r} is not here; there is {self.name!r}"
        if not prompt:
            return "prompt: empty"
        if not 0 <= min(prompt) <= max(prompt) < self._vocab_size:
            return f"prompt: token ids must lie in 0..{self._vocab_size - 1}"
        if len(prompt) >= self._max_context:
            return f"prompt: {len(prompt)} tokens; with the answer {self._max_context} are allowed"
        return None

    def _params(self, asked: Sampling, num_prompt: int) -> DecodingParams:
        room = self._max_context - num_prompt
        return DecodingParams(
            name="served",
            temperature=asked.temperature,
            top_p=asked.top_p,
            top_k=max(asked.top_k, 0),
            max_new_tokens=min(asked.max_completion_tokens or asked.max_tokens or room, room),
            ignore_end_token=asked.ignore_eos,
        )

    async def _events(self, job: Job, shapes: Shapes, usage: bool) -> AsyncIterator[str]:
        """Server-sent events of a job, which is cancelled where its client goes."""
        text, first = _Text(self._tokenizer), True
        try:
            while True:
                progress = await job.progress.get()
                if progress.error is not None:
                    yield _event(failure(str(progress.error), "server_error"))
                    return
                if progress.ended is None:
                    yield _event(shapes.event(text.add(progress.ids), progress.ids, None, first))
                    first = False
                    continue
                yield _event(shapes.event(text.rest(), [], finish_reason(progress.ended), first))
                if usage:
                    yield _event(shapes.usage_event(progress.ended))
                yield "data: [DONE]\n\n"
                return
        finally:
            job.cancelled = True

    async def _whole(self, job: Job, shapes: Shapes, client: Request) -> Response:
        listening = asyncio.create_task(_cancelled_without(client, job))
        try:
            while True:
                progress = await job.progress.get()
                if progress.error is not None:
                    return JSONResponse(failure(str(progress.error), "server_error"), 500)
                if (made := progress.ended) is not None:
                    text: str = self._tokenizer.decode(made.output_ids, skip_special_tokens=True)
                    return JSONResponse(shapes.whole(text, made))
        finally:
            listening.cancel()
            job.cancelled = True

    def encode(self, prompt: str | list[int] | list[str]) -> list[int]:
        """Token ids of a prompt of `/v1/completions`.

        Raises:
            ConfigError: several prompts.
        """
        if isinstance(prompt, str):
            return list(self._tokenizer(prompt)["input_ids"])
        ids = [one for one in prompt if isinstance(one, int)]
        if len(ids) == len(prompt):
            return ids
        if len(prompt) == 1:
            return self.encode(str(prompt[0]))
        raise ConfigError("prompt: several texts; send a request for each")

    def chat(self, asked: ChatRequest) -> list[int]:
        """Token ids of a chat; raises ConfigError where the template refuses it."""
        return self._render([Message(role=one.role, content=one.text) for one in asked.messages])


class _Text:
    """Text of tokens that come in pieces, by whole characters."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer, self._ids, self._given = tokenizer, list[int](), ""

    def add(self, ids: Sequence[int]) -> str:
        """What is new with these tokens, less a character that is not complete."""
        self._ids += ids
        whole: str = self._tokenizer.decode(self._ids, skip_special_tokens=True)
        return "" if whole.endswith(_BROKEN) else self._new(whole)

    def rest(self) -> str:
        """What was held back."""
        return self._new(self._tokenizer.decode(self._ids, skip_special_tokens=True))

    def _new(self, whole: str) -> str:
        fresh, self._given = whole[len(self._given) :], whole
        return fresh


async def _cancelled_without(client: Request, job: Job) -> None:
    """Cancel a job once its client has gone; a job that waits is then dropped, and nobody hears of it."""
    while not await client.is_disconnected():
        await asyncio.sleep(_LISTEN_S)
    job.cancelled = True
    job.report(Progress(error=ConnectionError("the client has gone")))


def _event(found: dict[str, Any]) -> str:
    return f"data: {json.dumps(found, separators=(',', ':'))}\n\n"


def make_app(service: Service, decoder: Decoder, max_request_bytes: int) -> FastAPI:
    """The application of a service."""
    app = FastAPI(title="specbench", docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(SizeLimit, most=max_request_bytes)

    @app.exception_handler(RequestValidationError)
    async def refused(_: Request, error: RequestValidationError) -> Response:
        parts = (f"{'.'.join(map(str, one['loc'][1:]))}: {one['msg']}" for one in error.errors())
        return JSONResponse(failure("; ".join(parts)), 400)

    @app.exception_handler(HTTPException)
    async def raised(_: Request, error: HTTPException) -> Response:
        return JSONResponse(failure(str(error.detail)), error.status_code)

    @app.exception_handler(ConfigError)
    async def misused(_: Request, error: ConfigError) -> Response:
        return JSONResponse(failure(str(error)), 400)

    @app.get("/health")
    async def health() -> Response:
        return PlainTextResponse("")

    @app.get("/metrics")
    async def metrics() -> Response:
        return PlainTextResponse(decoder.metrics(), media_type="text/plain; version=0.0.4")

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [{"id": service.name, "object": "model", "owned_by": "specbench"}]}

    @app.post("/v1/completions")
    async def completions(asked: CompletionRequest, client: Request) -> Response:
        return await service.answer("completion", asked, service.encode(asked.prompt), client)

    @app.post("/v1/chat/completions")
    async def chat(asked: ChatRequest, client: Request) -> Response:
        return await service.answer("chat", asked, service.chat(asked), client)

    return app
