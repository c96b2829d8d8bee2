"""Suffix: retrieval by suffix automaton (SAM Decoding, Hu et al. 2024, arXiv 2411.10666).

The longest suffix of prompt and output that occurred before is found in constant time per token, however long
it is; the tokens that followed its first occurrence are drafted. A corpus of earlier outputs can be searched
too: the longer match wins, the text itself on a tie. With `length_factor` the draft grows in proportion to
the match, as in SuffixDecoding (Oliaro et al. 2024, arXiv 2411.04975).
Where the code departs from SAM Decoding:
* No other drafter takes over without a match of `min_match` tokens (theirs: EAGLE-2 or Token Recycling, below
  5).
* Text and corpus compete by the length of their matches alone; theirs must be longer by 5 to win.
* The draft has a fixed length; theirs has min(40, 1 + floor(4 x match)) tokens including the pending one,
  which is `draft_length: 39, length_factor: 4` here.
* Where few tokens follow the match the draft is short; theirs climbs to a shorter match that more tokens
  follow.
* A corpus also gives a chain, from the first occurrence; theirs can give a tree by counts of successors.
* The corpus is read-only and holds each output once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator
from typing_extensions import override

from harness.config import configurable
from harness.drafting.drafter import TargetView
from harness.drafting.sequence_drafter import SequenceDrafter
from methods.shared.memory import RememberingDrafter
from methods.shared.stored_outputs import read_outputs
from methods.shared.suffix_automaton import ROOT, Match, SuffixAutomaton
from methods.shared.text_memory import RememberedText, TextMemory

_SEPARATOR = -1
"""Separates the outputs of a corpus. It is no token id, so no match and no draft crosses it."""


@dataclass
class _State:
    """The state of one sequence."""

    memory: TextMemory
    text: RememberedText
    """What is remembered, then prompt and output so far."""
    place: tuple[int, int] = (ROOT, 0)
    """State and length of the longest suffix of the text that occurs in the corpus."""


@configurable
class Suffix(RememberingDrafter, SequenceDrafter):
    """Drafts a chain: the continuation of the longest suffix that occurred before."""

    draft_length: int = Field(default=10, ge=1)
    """Largest number of drafted tokens."""
    min_match: int = Field(default=2, ge=1)
    """Shortest suffix that is followed, in tokens."""
    max_match: int | None = Field(default=None, ge=1)
    """Longest suffix that is considered, in tokens; None: any length."""
    length_factor: float | None = Field(default=None, gt=0)
    """Limits the draft to this many times the length of the match; None: `draft_length` alone limits it."""
    corpus_path: str | None = None
    """A JSONL file with one `{"output_ids": [...]}` per line, such as the records.jsonl of a run."""

    @model_validator(mode="after")
    def _ordered(self) -> Suffix:
        if self.max_match is not None and self.min_match > self.max_match:
            raise ValueError(f"min_match {self.min_match} is above max_match {self.max_match}")
        return self

    @property
    @override
    def corpus(self) -> str | None:
        return Path(self.corpus_path).name if self.corpus_path else None

    @override
    def bind(self, target: TargetView) -> None:
        """Read the corpus.

        Raises:
            ConfigError: the corpus is missing, malformed or of another vocabulary; the text names the line.
        """
        super().bind(target)
        self._corpus = read_corpus(self.corpus_path, target.vocab_size) if self.corpus_path else None

    @override
    def card(self) -> dict[str, Any]:
        # Another corpus makes another measurement, whatever the name of its file.
        if not self.corpus_path:
            return {}
        return {"corpus_sha256": hashlib.sha256(Path(self.corpus_path).read_bytes()).hexdigest()}

    @override
    def new_memory(self) -> TextMemory:
        return TextMemory(lambda: SuffixAutomaton(max_match=self.max_match))

    @override
    def start_with(self, memory: TextMemory) -> _State:
        return _State(memory, memory.begin())

    @override
    def end_one(self, state: _State) -> None:
        state.memory.end(state.text)

    @override
    def extend_one(self, state: _State, tokens: Sequence[int]) -> None:
        state.text.extend(tokens)
        if self._corpus:
            for token in tokens:
                state.place = self._corpus.step(*state.place, token, self.max_match)

    @override
    def propose_one(self, context: Sequence[int], state: _State, room: int) -> Sequence[int]:
        source = state.text.automaton
        match = source.repeated()
        if self._corpus:
            other = self._corpus.found(*state.place)
            if other.length > match.length:
                match, source = other, self._corpus
        if match.length < self.min_match:
            return ()
        draft = source.after(match, min(self._limit(match), room))
        return draft[: draft.index(_SEPARATOR)] if _SEPARATOR in draft else draft

    def _limit(self, match: Match) -> int:
        if self.length_factor is None:
            return self.draft_length
        return min(self.draft_length, max(1, int(self.length_factor * match.length)))


def read_corpus(path: str, vocab_size: int | None = None) -> SuffixAutomaton:
    """Build an automaton over the distinct `output_ids` of a JSONL file.

    vocab_size: of the target; None: any number from 0 is a token id.

    Raises:
        ConfigError: the file is missing or malformed; the text names the line.
    """
    outputs = dict.fromkeys(map(tuple, read_outputs(path, "corpus_path=", vocab_size)))
    return SuffixAutomaton(token for output in outputs for token in (*output, _SEPARATOR))
