"""DDTree: a DFlash head's marginals as the best tree under a budget of nodes.

DDTree (2026, arXiv 2604.12989) needs no training of its own. JetSpec (arXiv 2606.18394) is the same with a
head whose slots see only the slots before them (`causal`), fewer children per node and a larger budget.

Shapes: B sequences, k slots, c children.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field
from typing_extensions import override

from harness.config import configurable
from harness.drafting.draft import Draft
from methods.ddtree.tree import best_first
from methods.shared.block.online import OnlineBlock


@configurable
class DDTree(OnlineBlock):
    """Drafts trees with a trained block drafter."""

    budget: int = Field(default=32, ge=1)
    """Nodes of a tree."""
    width: int | None = Field(default=None, ge=1)
    """Most children of a node; None: as many as the budget."""

    @property
    @override
    def num_drafted(self) -> int | None:
        return min(self.budget, self._num_candidates)

    @torch.no_grad()
    @override
    def propose(self, room: Sequence[int]) -> Draft:
        logits = self.network.logits(self._run(), self._target).float()
        best = logits.topk(self._num_children, dim=-1)
        log_probs = best.values - logits.logsumexp(-1, keepdim=True)
        return best_first(self.network.target_ids(best.indices), log_probs, self.budget)

    @property
    def _num_children(self) -> int:
        return min(self.width or self.budget, self.network.shape.draft_vocab_size)

    @property
    def _num_candidates(self) -> int:
        """Nodes that the levels offer."""
        level = total = self._num_children
        for _ in range(self.length - 1):
            level = min(min(level, self.budget) * self._num_children, self.budget)
            total += level
        return total
