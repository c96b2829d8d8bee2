"""N-gram: prompt lookup (Saxena 2023, "Prompt Lookup Decoding"; LLMA, Yang et al. 2023, arXiv 2304.04487).

The last few tokens are searched for in the text so far, the longest n-gram first; the tokens that followed
them are drafted.
Where the code departs from the original: an index of all n-grams grows with the text, so a round costs a few
dictionary look-ups however long the context is, and the latest occurrence can be followed instead of the
first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from pydantic import Field, model_validator
from typing_extensions import override

from harness.config import configurable
from harness.drafting.sequence_drafter import SequenceDrafter


@dataclass
class _Index:
    """The text so far and where its n-grams occurred."""

    tokens: list[int] = field(default_factory=list)
    ends: dict[tuple[int, ...], int] = field(default_factory=dict)
    """For each n-gram that some token follows: the position in `tokens` just after its occurrence."""


@configurable
class NGram(SequenceDrafter):
    """Drafts a chain: the continuation of an earlier occurrence of the last tokens."""

    max_ngram: int = Field(default=3, ge=1)
    """Longest suffix that is looked up, in tokens."""
    min_ngram: int = Field(default=1, ge=1)
    """Shortest suffix that is looked up, in tokens."""
    draft_length: int = Field(default=10, ge=1)
    """Largest number of drafted tokens."""
    occurrence: Literal["first", "latest"] = "first"
    """Which of several occurrences is followed; the original and transformers follow the `first`."""
    end_token_id: int | None = Field(default=None, ge=0)
    """The draft ends before this token, as in transformers; None drafts it like any other."""
    rule: Literal["transformers", "original"] = "transformers"
    """When the continuation is drafted. `transformers`: whatever follows the longest n-gram that anything
    follows. `original` (Saxena's function, also in Spec-Bench): only where `draft_length` tokens follow it
    and begin before the n-gram's own place; otherwise a shorter n-gram is tried."""

    @model_validator(mode="after")
    def _consistent(self) -> NGram:
        if self.rule == "original" and self.occurrence == "latest":
            raise ValueError("rule original takes the first occurrence; leave occurrence=first")
        if self.min_ngram > self.max_ngram:
            raise ValueError(f"min_ngram {self.min_ngram} is above max_ngram {self.max_ngram}")
        return self

    @override
    def start_one(self) -> _Index:
        return _Index()

    @override
    def extend_one(self, state: _Index, tokens: Sequence[int]) -> None:
        known = state.tokens
        for token in tokens:
            # The n-grams that end here enter the index only now, when a token follows them.
            end = len(known)
            for size in range(self.min_ngram, min(self.max_ngram, end) + 1):
                gram = tuple(known[end - size :])
                if self.occurrence == "latest":
                    state.ends[gram] = end
                else:
                    state.ends.setdefault(gram, end)
            known.append(token)

    @override
    def propose_one(self, context: Sequence[int], state: _Index, room: int) -> Sequence[int]:
        for size in range(min(self.max_ngram, len(context)), self.min_ngram - 1, -1):
            end = state.ends.get(tuple(context[-size:]))
            if end is not None and self._is_usable(end, size, len(context)):
                found = context[end : end + min(self.draft_length, room)]
                return found[: found.index(self.end_token_id)] if self.end_token_id in found else found
        return ()

    def _is_usable(self, end: int, size: int, num_tokens: int) -> bool:
        """Whether what follows the n-gram of `size` tokens that ends at `end` may be drafted."""
        if self.rule == "transformers":
            return True
        # Earlier occurrences have more behind them, so no later one would do where the first does not.
        return end + self.draft_length <= num_tokens and end < num_tokens - size
