"""SAM: draft what followed the longest suffix of the text where it stood first, in proportion to the match.

SAM Decoding, Hu et al. 2024 (arXiv 2411.10666), its stand-alone drafter without a static corpus, as the
code in SpecTTS-Bench runs it: min(P, 1 + floor(alpha * match)) tokens, the pending one among them, are
taken from behind the first occurrence; nothing is padded, and no shorter match is tried where few tokens
follow. `method=suffix` has the further choices: a corpus, a shortest match, a fixed length.
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from harness.config import configurable
from harness.drafting.sequence_drafter import SequenceDrafter
from methods.shared.suffix_automaton import SuffixAutomaton


@configurable
class SAM(SequenceDrafter):
    """Drafts a chain."""

    num_predicts: int = Field(default=40, ge=1)
    """P, the most tokens of a round, the pending one among them."""
    alpha: float = Field(default=4.0, gt=0)
    """Tokens that are drafted for each token of the match."""

    def start_one(self) -> SuffixAutomaton:
        """An automaton of an empty text."""
        return SuffixAutomaton()

    def extend_one(self, state: SuffixAutomaton, tokens: Sequence[int]) -> None:
        """Append what was committed and the pending token."""
        for token in tokens:
            state.extend(token)

    def propose_one(self, context: Sequence[int], state: SuffixAutomaton, room: int) -> Sequence[int]:
        """What followed the first occurrence of the longest suffix, up to the pending token."""
        match = state.repeated()
        if match.length == 0:
            return ()
        count = min(self.num_predicts, 1 + int(self.alpha * match.length)) - 1
        # The pending token itself is no continuation of what stood before it.
        left = len(state.tokens) - 1 - match.end
        return state.after(match, min(count, left, room))
