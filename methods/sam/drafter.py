"""SAM: draft what followed the longest suffix of the text where it stood first.

SAM Decoding, Hu et al. 2024 (arXiv 2411.10666), without a static corpus, as the code in SpecTTS-Bench runs
it. Alone, it drafts in proportion to the match: min(P, 1 + floor(alpha * match)) tokens, the pending one
among them, are taken from behind the first occurrence; nothing is padded, and no shorter match is tried where
few tokens follow. Inside a router it drafts P - 1 tokens (`length: fixed`) behind the longest suffix that so
many tokens follow, and fills up with token 0 where there is none.

The memory reaches over all calls about one question, as in that benchmark: prompts and outputs are one text,
and a match may run across their borders. `method=suffix` has the further choices: a corpus, a longest match.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field
from typing_extensions import override

from harness.config import configurable
from harness.drafting.sequence_drafter import SequenceDrafter
from methods.shared.memory import MemoryScope, RememberingDrafter
from methods.shared.suffix_automaton import SuffixAutomaton
from methods.shared.text_memory import RememberedText, TextMemory

_PADDING = 0
"""The token that fills up a chain of fixed length."""


@configurable
class SAM(RememberingDrafter, SequenceDrafter):
    """Drafts a chain."""

    num_predicts: int = Field(default=40, ge=1)
    """P, the most tokens of a round, the pending one among them."""
    alpha: float = Field(default=4.0, gt=0)
    """Tokens that are drafted for each token of the match."""
    min_match: int = Field(default=1, ge=1)
    """Shortest match that is followed, in tokens; a router uses 5."""
    length: Literal["proportional", "fixed"] = "proportional"
    """Whether a draft grows with the match, or always has P - 1 tokens."""
    memory: MemoryScope = "question"

    @override
    def new_memory(self) -> TextMemory:
        return TextMemory(SuffixAutomaton)

    @override
    def start_with(self, memory: TextMemory) -> tuple[TextMemory, RememberedText]:
        return memory, memory.begin()

    @override
    def end_one(self, state: tuple[TextMemory, RememberedText]) -> None:
        memory, text = state
        memory.end(text)

    @override
    def extend_one(self, state: tuple[TextMemory, RememberedText], tokens: Sequence[int]) -> None:
        state[1].extend(tokens)

    @override
    def propose_one(
        self, context: Sequence[int], state: tuple[TextMemory, RememberedText], room: int
    ) -> Sequence[int]:
        automaton = state[1].automaton
        match = automaton.repeated()
        if match.length < self.min_match:
            return ()
        # The pending token itself is no continuation of what stood before it.
        num_text = len(automaton.tokens) - 1
        if self.length == "proportional":
            count = min(self.num_predicts, 1 + int(self.alpha * match.length)) - 1
            return automaton.after(match, min(count, num_text - match.end, room))
        match = automaton.repeated_before(num_text - self.num_predicts)
        found = list(automaton.after(match, min(self.num_predicts - 1, num_text - match.end)))
        return (found + [_PADDING] * (self.num_predicts - 1 - len(found)))[:room]
