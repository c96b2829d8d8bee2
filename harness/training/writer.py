"""Writer: the target as the author of dialogues, and as the reader of those of others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from harness.config import ConfigError
from harness.decoding.acceptance import Coupled
from harness.decoding.batch import Request
from harness.decoding.loop import DecodingLoop
from harness.decoding.sampling import DecodingParams, stream_key
from harness.drafting.drafter import Drafter
from harness.tasks.conversation import Message

_TURNS: tuple[Literal["user", "assistant"], ...] = ("user", "assistant", "user")


@dataclass(frozen=True, kw_only=True)
class Writer:
    """The target as the author of dialogues."""

    engine: DecodingLoop
    drafter: Drafter
    """A bound method that makes writing faster; the text is the target's own whatever it drafts."""
    render: Callable[[Sequence[Message]], list[int]]
    """Messages to the ids of a prompt."""
    eos_token_id: int | None
    """The tokenizer's own end token."""
    decode: Callable[[Sequence[int]], str]
    encode: Callable[[str], list[int]]
    note: Callable[[str], None]
    """Takes a line for people."""

    def write(
        self, prompts: Sequence[tuple[str, list[int]]], params: DecodingParams, batch_size: int
    ) -> list[list[int]]:
        """The target's continuations of prompts, each given with the name of its random stream.

        `batch_size` of them run at the same time. Those of similar length do so together, because every
        sequence of a batch reads as many slots of the cache as the longest.
        """
        by_length = sorted(range(len(prompts)), key=lambda place: len(prompts[place][1]))
        requests = [
            Request(prompt=ids, key=stream_key(params.seeds[0], name, 0, 0))
            for name, ids in (prompts[place] for place in by_length)
        ]
        loop = DecodingLoop(
            self.engine.target,
            self.engine.end_token_ids,
            self.engine.max_context,
            timed=False,
            batch_size=batch_size,
        )
        made = loop.generate(requests, self.drafter, params, Coupled())
        outputs = {place: one.output_ids for place, one in zip(by_length, made, strict=True)}
        return [outputs[place] for place in range(len(prompts))]

    @cached_property
    def answer_end(self) -> int | None:
        """The token that ends an answer: the end token behind an answer in the chat template, or else the
        tokenizer's. None if no token ends an answer.

        Raises:
            ConfigError: there are several end tokens, and neither says which.
        """
        ends = self.engine.end_token_ids
        if len(ends) < 2:
            return next(iter(ends), None)
        one, other, third = (
            self.render([Message(role=role, content=text) for role, text in zip(_TURNS, texts, strict=True)])
            for texts in ("AAA", "A7A", "AA7")
        )
        behind = one[_first_difference(one, other) : _first_difference(one, third)]
        found = next((token for token in behind if token in ends), self.eos_token_id)
        if found not in ends:
            raise ConfigError(
                f"data: answers may end with any of the tokens {sorted(ends)}, and neither the chat template"
                " nor the tokenizer says which; type target.template=FILE.jinja, whose answers end with one"
            )
        return found

    def user_prefix(self) -> list[int]:
        """The ids that the chat template puts before the text of a user's first turn."""
        one, other = (self.render([Message(role="user", content=text)]) for text in ("A", "7"))
        return one[: _first_difference(one, other)]


def _first_difference(one: Sequence[int], other: Sequence[int]) -> int:
    """The first index at which two lists differ."""
    return next(i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)
