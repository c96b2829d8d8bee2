"""Suffix: retrieval by suffix automaton (SAM Decoding, Hu et al. 2024, arXiv 2411.10666).

The longest suffix of prompt and output that stood there before is found however long it is, in constant time
a token; what followed its first occurrence is drafted. A corpus of earlier outputs may be searched too: the
longer match wins, the text itself on a tie. `length_factor` drafts in proportion to the match, as
SuffixDecoding does (Oliaro et al. 2024, arXiv 2411.04975).
Where the code departs from SAM Decoding:
* No drafter takes over without a match of `min_match` tokens (theirs: EAGLE-2 or Token Recycling, below 5).
* Text and corpus compete by the length of their matches alone; theirs has to be longer by 5 to win.
* The draft has a fixed length; theirs is min(40, 1 + floor(4 x match)) tokens with the pending one, which is
  `draft_length: 39, length_factor: 4` here.
* Where few tokens follow the match the draft is short; theirs climbs to a shorter match with more after it.
* A corpus gives a chain too, from its first occurrence; theirs can give a tree by counts of successors.
* The corpus is read-only and holds each output once.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from harness.config import ConfigError, configurable
from harness.drafting.drafter import TargetView
from harness.drafting.sequence_drafter import SequenceDrafter
from methods.shared.suffix_automaton import ROOT, Match, SuffixAutomaton

_SEPARATOR = -1
"""Between outputs of the corpus; no token, so no match and no draft crosses it."""


@dataclass
class _State:
    """The text so far, and where the corpus agrees with its end."""

    text: SuffixAutomaton
    place: tuple[int, int] = (ROOT, 0)


@configurable
class Suffix(SequenceDrafter):
    """Drafts a chain.

    draft_length: most tokens of a draft. min_match, max_match: shortest suffix that is followed, longest that
    is looked at (None: any). length_factor: drafts at most that many times the match's length (None: always
    draft_length). corpus_path: a JSONL file of `{"output_ids": [...]}`, as a run's records.jsonl is.
    """

    draft_length: int = Field(default=10, ge=1)
    min_match: int = Field(default=2, ge=1)
    max_match: int | None = Field(default=None, ge=1)
    length_factor: float | None = Field(default=None, gt=0)
    corpus_path: str | None = None

    @model_validator(mode="after")
    def _ordered(self) -> Suffix:
        if self.max_match is not None and self.min_match > self.max_match:
            raise ValueError(f"min_match {self.min_match} is above max_match {self.max_match}")
        return self

    @property
    def corpus(self) -> str | None:
        """The name of the corpus file: outputs of other conversations."""
        return Path(self.corpus_path).name if self.corpus_path else None

    def bind(self, target: TargetView) -> None:
        """See `Drafter`; reads the corpus.

        Raises:
            ConfigError: a missing or malformed corpus, by line.
        """
        super().bind(target)
        self._corpus = read_corpus(self.corpus_path) if self.corpus_path else None

    def card(self) -> dict[str, Any]:
        """See `Drafter`: another corpus makes another measurement, whatever its file is called."""
        if not self.corpus_path:
            return {}
        return {"corpus_sha256": hashlib.sha256(Path(self.corpus_path).read_bytes()).hexdigest()}

    def start_one(self) -> _State:
        """See `SequenceDrafter`."""
        return _State(SuffixAutomaton(max_match=self.max_match))

    def extend_one(self, state: _State, tokens: Sequence[int]) -> None:
        """See `SequenceDrafter`."""
        for token in tokens:
            state.text.extend(token)
            if self._corpus:
                state.place = self._corpus.step(*state.place, token, self.max_match)

    def propose_one(self, context: Sequence[int], state: _State, room: int) -> Sequence[int]:
        """See `SequenceDrafter`."""
        match = state.text.repeated()
        source = state.text
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


def read_corpus(path: str) -> SuffixAutomaton:
    """An automaton over the distinct `output_ids` of a JSONL file.

    Raises:
        ConfigError: a missing or malformed file, by line.
    """
    file = Path(path)
    if not file.is_file():
        raise ConfigError(f"corpus_path={path}: no such file; a run's records.jsonl is one")
    outputs: dict[tuple[int, ...], None] = {}
    for number, line in enumerate(file.read_text().splitlines(), start=1):
        try:
            ids = json.loads(line)["output_ids"]
            if any(type(token) is not int or token < 0 for token in ids):
                raise ValueError("output_ids must be token ids")
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"corpus_path={path}:{number}: needs `output_ids`, a list of integers ({error})"
            ) from error
        outputs[tuple(ids)] = None
    return SuffixAutomaton(token for output in outputs for token in (*output, _SEPARATOR))
