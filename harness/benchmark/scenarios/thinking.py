"""Thinking: the budget of a thought, how its end is forced, and what of an output is the answer.

SpecTTS-Bench (arXiv 2509.04474, code 6b33e4a) lets a reasoning model think for at most 0.8 of its tokens.
Then tokens that end the thought are forced, one per round, and the model writes its answer freely. Its code
forces them after an overshoot that depends on the method's drafts, and also where the thought has ended by
itself; here they stand at the same place for every method, and by default only where the thought is still
open.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field

from harness.config import ConfigError, configurable
from harness.decoding.forced_tokens import ForcedTokens

TAG = "</think>"
"""What ends a thought, in every model that thinks."""
_CLOSINGS = {
    "sentence": "Considering the limited time by the user, I have to give the solution based on the thinking"
    f" directly now.\n{TAG}.\n\n",
    "blank_lines": f"\n\n{TAG}\n\n",
}
_SEPARATORS = {"sentence": TAG, "blank_lines": f"\n{TAG}\n"}
"""What stands between a thought and the answer; a line break of it is no part of the answer."""


@configurable
class Thinking:
    """The settings; `tags` adds what the tokenizer knows."""

    budget_share: float | None = Field(default=0.8, gt=0, lt=1)
    """Share of `max_new_tokens` after which the end of the thought is forced; None: it may take all."""
    closing: Literal["auto", "sentence", "blank_lines"] = "auto"
    """The text that is forced: Qwen3's own sentence and the tag, or the tag between blank lines as for
    DeepSeek-R1. `auto`: the sentence where the chat template has Qwen3's switch for thinking."""
    fallback: Literal["text", "refuse"] = "text"
    """For a target that has no token for the tag. `text`: the tag is written in ordinary tokens, and an
    output without it is an answer as a whole. `refuse`: an error."""
    only_open: bool = True
    """Whether nothing is forced where the thought has ended by itself."""

    def tags(self, tokenizer: Any) -> Tags:
        """How thoughts end for the target of this tokenizer.

        Raises:
            ConfigError: it has no token for the tag, and the fallback is to refuse.
        """
        native = TAG in tokenizer.get_vocab()
        if not native and self.fallback == "refuse":
            raise ConfigError(
                f"scenario.thinking.fallback=refuse: the target has no token {TAG}; choose one that thinks,"
                " as target=qwen3_8b, or type scenario.thinking.fallback=text to write it in ordinary tokens"
            )
        closing = self.closing
        if closing == "auto":
            switch = "enable_thinking" in str(getattr(tokenizer, "chat_template", None))
            closing = "sentence" if native and switch else "blank_lines"

        def encode(text: str) -> tuple[int, ...]:
            return tuple(tokenizer.encode(text, add_special_tokens=False))

        return Tags(
            native=native,
            closing=_CLOSINGS[closing],
            closing_ids=encode(_CLOSINGS[closing]),
            tag_ids=encode(TAG),
            separator=_SEPARATORS[closing] if native else TAG,
            budget_share=self.budget_share,
            only_open=self.only_open,
        )


@dataclass(frozen=True, kw_only=True)
class Tags:
    """How thoughts end for one target."""

    native: bool
    """Whether the tag is a token of the target."""
    closing: str
    closing_ids: tuple[int, ...]
    tag_ids: tuple[int, ...]
    separator: str
    budget_share: float | None
    only_open: bool

    def forced(self, max_new_tokens: int) -> ForcedTokens | None:
        """What is forced in an output of at most so many tokens; None without a budget."""
        if self.budget_share is None:
            return None
        budget = max(1, int(max_new_tokens * self.budget_share))
        return ForcedTokens(ids=self.closing_ids, after=budget, unless=self.tag_ids if self.only_open else ())

    def answer(self, output_ids: Sequence[int], decode: Callable[[Sequence[int]], str]) -> str | None:
        """The text after the last thought, to the character as SpecTTS-Bench takes it.

        None where the thought never ended or nothing follows it; without a token for the tag, an output that
        does not hold it is an answer as a whole.
        """
        text = decode(output_ids).strip()
        _, found, answer = text.rpartition(self.separator)
        if not found and self.native:
            return None
        return answer or None

    def card(self) -> dict[str, Any]:
        """What the manifest says; JSON types."""
        return {
            "tag": f"the target's token {TAG}" if self.native else f"{TAG} in ordinary tokens (fallback)",
            "closing": self.closing,
            "closing_ids": list(self.closing_ids),
            "budget_share": self.budget_share,
            "only_open": self.only_open,
        }
