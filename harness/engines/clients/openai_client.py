"""The dialect of OpenAI's `/v1/completions`, with token ids in and, where the server knows how, out.

vLLM and `harness.serve` answer `return_token_ids` with the ids of each event; other servers ignore it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx2
import openai
from typing_extensions import override

from harness.config import ConfigError
from harness.engines.clients.streams import Client, Question, Reply, status_fault, transport_fault
from harness.engines.faults import EngineFault


@contextmanager
def _faults(url: str, silence_s: float) -> Iterator[None]:
    """Turn what OpenAI's client raises into an EngineFault that says what the server did."""
    try:
        yield
    except openai.APIStatusError as error:
        raise status_fault(error.status_code, error.response.text) from error
    except openai.APIConnectionError as error:
        cause = error.__cause__
        if not isinstance(cause, httpx2.HTTPError):
            cause = httpx2.ReadError(str(error))
        raise transport_fault(cause, url, silence_s) from error
    except httpx2.HTTPError as error:
        raise transport_fault(error, url, silence_s) from error
    except openai.APIError as error:
        # An error that the server reports inside the stream.
        raise EngineFault("engine-error", str(error)) from error
    except (ValueError, AttributeError, TypeError) as error:
        raise EngineFault("engine-garbage", f"no event of a completion: {error}") from error


class OpenAIClient(Client):
    """Asks through OpenAI's own client, so that what is measured is what its users get."""

    def __init__(self, url: str, model: str, *, silence_s: float, api_key: str | None = None) -> None:
        super().__init__(url, silence_s=silence_s, api_key=api_key)
        self._model = model
        self._openai = openai.AsyncOpenAI(
            base_url=f"{url}/v1",
            api_key=api_key or "none",
            max_retries=0,
            http_client=self.http,
        )

    @override
    async def stream(self, question: Question, reply: Reply) -> None:
        with _faults(self.url, self._silence_s):
            await self._stream(question, reply)

    async def only_model(self) -> str:
        """The name of the only model that the server has.

        Raises:
            EngineFault: it cannot be reached, or answers something else.
            ConfigError: it has none, or several.
        """
        with _faults(self.url, self._silence_s):
            names = [one.id async for one in self._openai.models.list()]
        if len(names) != 1:
            raise ConfigError(
                f"engine.models: {self.url} has {len(names)} models ({', '.join(names[:8])}); type"
                " engine.models.ARM=NAME for each arm"
            )
        return names[0]

    async def _stream(self, question: Question, reply: Reply) -> None:
        extra: dict[str, Any] = {
            "return_token_ids": True,
            "ignore_eos": question.ignore_end,
            "skip_special_tokens": False,
            "spaces_between_special_tokens": False,
        }
        if question.top_k:
            extra["top_k"] = question.top_k
        events = await self._openai.completions.create(
            model=self._model,
            prompt=list(question.prompt),
            max_tokens=question.max_tokens,
            temperature=question.temperature,
            top_p=question.top_p,
            seed=question.seed,
            stream=True,
            stream_options={"include_usage": True},
            extra_body=extra,
        )
        async for event in events:
            if event.usage is not None:
                reply.num_reported = event.usage.completion_tokens
            for choice in event.choices:
                ids = getattr(choice, "token_ids", None) or []
                reply.take([int(token) for token in ids], choice.text or "")
                reply.finish = choice.finish_reason or reply.finish
