"""PIA: draft the branches that followed the last tokens in prompts and outputs, as one tree.

Zhao et al. 2024, "Lookahead: An Inference Acceleration Framework for Large Language Model with Lossless
Generation Accuracy" (arXiv 2312.12728), the trie forest of PainlessInferenceAcceleration. The last two tokens
are looked up in tries that grow with the prompt and, token by token, with the output; a tree of at most 64
nodes is taken depth first, heaviest branches first.

The copy in SpecTTS-Bench pushes wrong tokens into the forest and writes a wrong root after token 0; this one
stores every output token once, as the authors' own code does. Departures: counts are not halved in a forest
of more than 1,024 tries, and the forest of one call is not kept for the next.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import Field

from harness.config import configurable
from harness.drafting.sequence_drafter import SequenceTreeDrafter
from methods.pia.trie_forest import Selection, TrieForest


@dataclass
class _State:
    forest: TrieForest
    begun: bool = False


@configurable
class PIA(SequenceTreeDrafter):
    """Drafts a tree of stored branches."""

    branch_length: int = Field(default=12, ge=1)
    """Deepest level of a draft."""
    num_nodes: int = Field(default=64, ge=2)
    """Most nodes of a draft, the pending token among them."""
    query_length: int = Field(default=2, ge=1)
    """Tokens that are looked up, the pending token last."""
    output_weight: float = Field(default=1e-4, ge=0, le=1)
    """Share of output counts in the weight by which branches are ordered; prompts have the rest."""
    selection: Selection = "upstream"
    """Which nodes of a crowded trie stay: `upstream` as the code does it, `nodes` as probably meant."""

    def start_one(self) -> _State:
        """An empty forest."""
        return _State(
            TrieForest(
                branch_length=self.branch_length,
                num_nodes=self.num_nodes,
                output_weight=self.output_weight,
                selection=self.selection,
            )
        )

    def extend_one(self, state: _State, tokens: Sequence[int]) -> None:
        """Store the prompt without its first token, then every output token."""
        if not state.begun:
            state.begun = True
            state.forest.insert_prompt(tokens[1:-1])
            tokens = tokens[-1:]
        state.forest.push(tokens)

    def propose_tree(self, context: Sequence[int], state: _State, room: int) -> tuple[list[int], list[int]]:
        """The branches that followed the last tokens."""
        return state.forest.draft(context[-self.query_length :])
