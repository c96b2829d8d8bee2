"""Drafters for methods in plain Python that treat sequences one by one and draft chains or trees."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from typing_extensions import override

from harness.drafting.draft import Draft
from harness.drafting.drafter import Drafter, Outcome


class PerSequenceDrafter(Drafter):
    """Keeps a context and a state for every sequence; a subclass says how a draft is made of them.

    A method that keeps an index implements `start_one` and `extend_one`.
    """

    def start_one(self) -> Any:
        """The state of a new sequence."""
        return None

    def extend_one(self, state: Any, tokens: Sequence[int]) -> None:
        """Add tokens to the context: first the prompt, later accepted tokens; the pending token comes
        last."""

    @override
    def reset(self, num_rows: int) -> None:
        self._contexts: list[list[int]] = [[] for _ in range(num_rows)]
        self._states = [self.start_one() for _ in range(num_rows)]

    @override
    def observe(self, outcome: Outcome) -> None:
        rows = range(len(self._contexts)) if outcome.rows is None else outcome.rows
        for row, committed, pending in zip(rows, outcome.committed, outcome.pending, strict=True):
            if outcome.rows is not None:
                self._contexts[row], self._states[row] = [], self.start_one()
            context = self._contexts[row]
            # Except at a prefill, `committed` begins with the old pending token, which the context has.
            fresh = [*(committed[1:] if context else committed), pending]
            context.extend(fresh)
            self.extend_one(self._states[row], fresh)

    @override
    def keep(self, rows: Sequence[int]) -> None:
        self._contexts = [self._contexts[row] for row in rows]
        self._states = [self._states[row] for row in rows]


class SequenceDrafter(PerSequenceDrafter):
    """A drafter that treats sequences one by one in plain Python and drafts chains.

    A method implements `propose_one`.
    """

    @abstractmethod
    def propose_one(self, context: Sequence[int], state: Any, room: int) -> Sequence[int]:
        """At most `room` tokens that may follow `context` (prompt, output, pending token)."""

    @override
    def propose(self, room: Sequence[int]) -> Draft:
        chains = [
            list(self.propose_one(context, state, limit))[:limit]
            for context, state, limit in zip(self._contexts, self._states, room, strict=True)
        ]
        device, width = self._target.device, max(map(len, chains))
        if width == 0:
            return Draft.empty(len(chains), device)
        padded = [chain + [0] * (width - len(chain)) for chain in chains]
        size = torch.tensor([len(chain) for chain in chains], device=device)
        return Draft.chain(torch.tensor(padded, device=device), size)


class SequenceTreeDrafter(PerSequenceDrafter):
    """A drafter that treats sequences one by one in plain Python and drafts trees.

    A method implements `propose_tree`.
    """

    @abstractmethod
    def propose_tree(self, context: Sequence[int], state: Any, room: int) -> tuple[list[int], list[int]]:
        """Tokens and parents of a tree that may follow `context` (prompt, output, pending token).

        A parent is the index of an earlier node, -1 for the pending token; siblings are distinct. Nodes
        deeper than `room` could not be emitted.
        """

    @override
    def propose(self, room: Sequence[int]) -> Draft:
        trees = [
            self.propose_tree(context, state, limit) if limit else ([], [])
            for context, state, limit in zip(self._contexts, self._states, room, strict=True)
        ]
        return batched(trees, self._target.device)


def batched(trees: Sequence[tuple[list[int], list[int]]], device: torch.device) -> Draft:
    """One draft of the tokens and parents of each sequence's tree."""
    width = max(len(tokens) for tokens, _ in trees)
    if width == 0:
        return Draft.empty(len(trees), device)
    tokens = [own + [0] * (width - len(own)) for own, _ in trees]
    # A padding node hangs from the node before it.
    parents = [own + list(range(len(own) - 1, width - 1)) for _, own in trees]
    return Draft(
        tokens=torch.tensor(tokens, device=device),
        parents=torch.tensor(parents, device=device),
        size=torch.tensor([len(own) for own, _ in trees], device=device),
    )
