"""PIA: draft the branches that followed the last tokens in prompts and outputs, as one tree.

Zhao et al. 2024, "Lookahead: An Inference Acceleration Framework for Large Language Model with Lossless
Generation Accuracy" (arXiv 2312.12728), the trie forest of PainlessInferenceAcceleration. The last two tokens
are looked up in tries that grow with the prompt and, token by token, with the output; a tree of at most 64
nodes is taken depth first, heaviest branches first. The forest reaches over all calls about one question.

The copy in SpecTTS-Bench stores doubled and dropped output tokens (`pushes: released`) and thins crowded
tries by another rule (`selection: released`); by default every output token is stored once, as the authors'
own code does. Departures: the copy's wrong root after token 0 is not imitated, and counts are not halved in a
forest of more than 1,024 tries.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from pydantic import Field
from typing_extensions import override

from harness.config import configurable
from harness.drafting.sequence_drafter import SequenceTreeDrafter
from methods.pia.trie_forest import Selection, Stream, TrieForest
from methods.shared.memory import MemoryScope, RememberingDrafter


@dataclass
class _Memory:
    forest: TrieForest
    stream: Stream
    """The one stream of all outputs where `pushes` is `released`."""


@dataclass
class _State:
    memory: _Memory
    stream: Stream
    prompt: list[int] | None = None
    """The stored part of the prompt; None before there is one."""
    pending: list[int] = field(default_factory=list)
    """The pending token of the last round, and whether it had a draft."""
    drafted: bool = False


@configurable
class PIA(RememberingDrafter, SequenceTreeDrafter):
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
    """Which nodes of a crowded trie stay: `upstream` as the authors' code does it, `released` as
    SpecTTS-Bench does, `nodes` as probably meant."""
    pushes: Literal["once", "released"] = "once"
    """Which tokens are stored. `once`: every output token, the rest of a branch when a sequence ends, and the
    prompt, which is forgotten then. `released`, as SpecTTS-Bench does: the pending token with the accepted
    ones after a round with a draft, else the next pending token; nothing more at the end."""
    end_token_id: int | None = Field(default=None, ge=0)
    """Neither this token nor what follows it in a prompt is stored; None stores everything."""
    memory: MemoryScope = "question"

    @override
    def new_memory(self) -> _Memory:
        forest = TrieForest(
            branch_length=self.branch_length,
            num_nodes=self.num_nodes,
            output_weight=self.output_weight,
            selection=self.selection,
            end_token_id=self.end_token_id,
        )
        return _Memory(forest, Stream(forest))

    @override
    def start_with(self, memory: _Memory) -> _State:
        return _State(memory, memory.stream if self.pushes == "released" else Stream(memory.forest))

    @override
    def extend_one(self, state: _State, tokens: Sequence[int]) -> None:
        released, last = self.pushes == "released", list(tokens[-1:])
        if state.prompt is None:
            state.prompt = list(tokens[:-1] if released else tokens[1:-1])
            state.memory.forest.count_prompt(state.prompt, by=1)
            if not released:
                state.stream.push(last)
        elif not released:
            state.stream.push(tokens)
        else:
            state.stream.push([*state.pending, *tokens[:-1]] if state.drafted else last)
        state.pending = last

    @override
    def end_one(self, state: _State) -> None:
        if self.pushes == "once" and state.prompt is not None:
            state.stream.flush()
            state.memory.forest.count_prompt(state.prompt, by=-1)

    @override
    def propose_tree(self, context: Sequence[int], state: _State, room: int) -> tuple[list[int], list[int]]:
        tokens, parents = state.memory.forest.draft(context[-self.query_length :])
        state.drafted = bool(tokens)
        return tokens, parents
