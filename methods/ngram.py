"""N-gram: prompt lookup (Saxena 2023, "Prompt Lookup Decoding"; LLMA, Yang et al. 2023, arXiv 2304.04487).

The last few tokens are searched in the text so far, longest n-gram first; what followed them is drafted.
Where the code departs: an index of every n-gram grows with the text, so that a round costs a few dictionary
look-ups however long the context is, and the latest occurrence may be asked for instead of the first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from pydantic import Field, model_validator

from harness.config import configurable
from harness.drafting.sequence_drafter import SequenceDrafter


@dataclass
class _Index:
    """n-gram -> where it ends in `tokens` (exclusive), for n-grams that something follows."""

    tokens: list[int] = field(default_factory=list)
    ends: dict[tuple[int, ...], int] = field(default_factory=dict)


@configurable
class NGram(SequenceDrafter):
    """Drafts a chain.

    max_ngram, min_ngram: sizes of the suffix that is looked up, in tokens. draft_length: most tokens of a
    draft. occurrence: of several places, the `first` (as the original and transformers) or the `latest`.
    rule: `transformers` drafts what follows the longest n-gram that anything follows, up to `draft_length`
    tokens; `original` (Saxena's function, also in Spec-Bench) only where `draft_length` tokens follow it that
    begin before the n-gram's own place, and looks for a shorter one elsewhere.
    """

    max_ngram: int = Field(default=3, ge=1)
    min_ngram: int = Field(default=1, ge=1)
    draft_length: int = Field(default=10, ge=1)
    occurrence: Literal["first", "latest"] = "first"
    rule: Literal["transformers", "original"] = "transformers"

    @model_validator(mode="after")
    def _consistent(self) -> NGram:
        if self.rule == "original" and self.occurrence == "latest":
            raise ValueError("rule original takes the first occurrence; leave occurrence=first")
        if self.min_ngram > self.max_ngram:
            raise ValueError(f"min_ngram {self.min_ngram} is above max_ngram {self.max_ngram}")
        return self

    def start_one(self) -> _Index:
        """See `SequenceDrafter`."""
        return _Index()

    def extend_one(self, state: _Index, tokens: Sequence[int]) -> None:
        """See `SequenceDrafter`."""
        known = state.tokens
        for token in tokens:
            # Only now does something follow the n-grams that end here.
            end = len(known)
            for size in range(self.min_ngram, min(self.max_ngram, end) + 1):
                gram = tuple(known[end - size :])
                if self.occurrence == "latest":
                    state.ends[gram] = end
                else:
                    state.ends.setdefault(gram, end)
            known.append(token)

    def propose_one(self, context: Sequence[int], state: _Index, room: int) -> Sequence[int]:
        """See `SequenceDrafter`."""
        for size in range(min(self.max_ngram, len(context)), self.min_ngram - 1, -1):
            end = state.ends.get(tuple(context[-size:]))
            if end is not None and self._is_usable(end, size, len(context)):
                return context[end : end + min(self.draft_length, room)]
        return ()

    def _is_usable(self, end: int, size: int, num_tokens: int) -> bool:
        """Whether what follows the n-gram of `size` tokens that ends at `end` may be drafted."""
        if self.rule == "transformers":
            return True
        # Earlier occurrences have more behind them, so no later one would do where the first does not.
        return end + self.draft_length <= num_tokens and end < num_tokens - size
