"""What clients send and get: the part of OpenAI's API that a benchmark needs."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from harness.decoding.batch import Generation


class StreamOptions(BaseModel):
    """OpenAI's `stream_options`."""

    include_usage: bool = False


class Sampling(BaseModel):
    """What both kinds of request have. Fields that no one here knows are ignored, as other servers do."""

    model_config = ConfigDict(extra="ignore")

    model: str = ""
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    """vLLM's; -1 and 0 switch the filter off."""
    seed: int | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    ignore_eos: bool = False
    """vLLM's: the answer continues behind an end token."""
    return_token_ids: bool = False
    """vLLM's: each event has the ids of its tokens."""
    n: int = 1
    stop: str | list[str] | None = None
    logprobs: bool | int | None = None
    echo: bool = False

    @property
    def refused(self) -> str | None:
        """The first thing that is asked for and cannot be had."""
        if self.n != 1:
            return f"n={self.n}: one answer per request"
        if self.stop:
            return "stop: an answer ends at the model's end token, or at max_tokens"
        if self.logprobs:
            return "logprobs: not kept"
        return "echo: the prompt is not repeated" if self.echo else None


class CompletionRequest(Sampling):
    """The body of `/v1/completions`."""

    prompt: str | list[int] | list[str]


class ChatMessage(BaseModel):
    """One message of a chat; content in parts is joined if all parts are text."""

    role: Literal["system", "user", "assistant"]
    content: str | list[dict[str, Any]] = ""

    @property
    def text(self) -> str:
        """The text of the message."""
        if isinstance(self.content, str):
            return self.content
        return "".join(str(part.get("text", "")) for part in self.content)


class ChatRequest(Sampling):
    """The body of `/v1/chat/completions`."""

    messages: list[ChatMessage] = Field(min_length=1)


Kind = Literal["completion", "chat"]


class Shapes:
    """Makes the objects of one answer."""

    def __init__(self, kind: Kind, model: str, num_prompt_tokens: int, with_ids: bool) -> None:
        """with_ids: whether the client asked for token ids."""
        self._kind, self._num_prompt, self._with_ids = kind, num_prompt_tokens, with_ids
        prefix = "cmpl" if kind == "completion" else "chatcmpl"
        self._head = {"id": f"{prefix}-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}

    def event(self, text: str, ids: Sequence[int], finish: str | None, first: bool = False) -> dict[str, Any]:
        """One event of a stream."""
        choice: dict[str, Any] = {"index": 0, "finish_reason": finish, "logprobs": None}
        if self._kind == "completion":
            choice["text"] = text
        else:
            choice["delta"] = {"content": text, **({"role": "assistant"} if first else {})}
        if self._with_ids:
            choice["token_ids"] = list(ids)
        name = "text_completion" if self._kind == "completion" else "chat.completion.chunk"
        return {**self._head, "object": name, "choices": [choice]}

    def usage_event(self, made: Generation) -> dict[str, Any]:
        """The last event of a stream whose client asked for the usage."""
        name = "text_completion" if self._kind == "completion" else "chat.completion.chunk"
        return {**self._head, "object": name, "choices": [], "usage": self.usage(made)}

    def whole(self, text: str, made: Generation) -> dict[str, Any]:
        """An answer that is not streamed."""
        choice: dict[str, Any] = {"index": 0, "finish_reason": finish_reason(made), "logprobs": None}
        if self._kind == "completion":
            choice["text"] = text
        else:
            choice["message"] = {"role": "assistant", "content": text}
        if self._with_ids:
            choice["token_ids"] = made.output_ids
        name = "text_completion" if self._kind == "completion" else "chat.completion"
        return {**self._head, "object": name, "choices": [choice], "usage": self.usage(made)}

    def usage(self, made: Generation) -> dict[str, Any]:
        """Tokens, and the rounds that they took."""
        num_tokens = len(made.output_ids)
        return {
            "prompt_tokens": self._num_prompt,
            "completion_tokens": num_tokens,
            "total_tokens": self._num_prompt + num_tokens,
            "completion_tokens_details": {
                "accepted_prediction_tokens": sum(made.accepted),
                "rejected_prediction_tokens": sum(made.drafted) - sum(made.accepted),
            },
        }


def finish_reason(made: Generation) -> str:
    """OpenAI's word for why an answer ended."""
    return "stop" if made.stop == "end" else "length"


def failure(text: str, kind: str = "invalid_request_error") -> dict[str, Any]:
    """The body of an error."""
    return {"error": {"message": text, "type": kind, "code": None, "param": None}}
