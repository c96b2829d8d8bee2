"""SequenceTreeDrafter: for methods in plain Python that treat sequences one by one and draft trees."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch

from harness.drafting.draft import Draft
from harness.drafting.sequence_drafter import SequenceDrafter


class SequenceTreeDrafter(SequenceDrafter):
    """A method writes `propose_tree`; where it keeps an index, also `start_one` and `extend_one`."""

    @abstractmethod
    def propose_tree(self, context: Sequence[int], state: Any, room: int) -> tuple[list[int], list[int]]:
        """Tokens and parents of a tree that may follow `context` (prompt, output, pending token).

        A parent is the index of an earlier node, -1 for the pending token; siblings are distinct. Levels
        deeper than `room` could not be emitted.
        """

    def propose_one(self, context: Sequence[int], state: Any, room: int) -> Sequence[int]:
        """Chains are not what this drafter proposes; `propose` calls `propose_tree`."""
        raise NotImplementedError

    def propose(self, room: Sequence[int]) -> Draft:
        """Put the trees of all sequences into one rectangle."""
        trees = [
            self.propose_tree(context, state, limit) if limit else ([], [])
            for context, state, limit in zip(self._contexts, self._states, room, strict=True)
        ]
        device, width = self._target.device, max(len(tokens) for tokens, _ in trees)
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
