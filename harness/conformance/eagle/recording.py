"""The drafter of a recorded case, a recorder around it, and its trees as the official code numbers them.

Shapes: T nodes of a tree with the pending token as node 0, D its levels with node 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from typing_extensions import override

from harness.config import build
from harness.conformance.case import Case
from harness.drafting.draft import Draft
from harness.drafting.drafter import Drafter, Outcome, TargetView
from harness.drafting.drafter_wrapper import DrafterWrapper


def recorded_drafter(
    case: Case, target: TargetView, tree: str = "harness.drafting.trees.DynamicTree"
) -> Drafter:
    """The head of a case with its tree, bound to the target. tree: the class of its policy."""
    node = {
        "_target_": "methods.eagle.Eagle",
        "architecture": "eagle3" if case.data["use_eagle3"] else "eagle",
        "head": str((case.root / case.data["head_dir"]).resolve()),
        "tree": {"_target_": tree, **{name: case.data[name] for name in ("total_token", "depth", "top_k")}},
    }
    drafter: Drafter = build(node, "drafter")
    drafter.bind(target)
    return drafter


class RecordingDrafter(DrafterWrapper):
    """Records outcomes, drafts and the roots that trees grew from."""

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.outcomes: list[Outcome] = []
        self.drafts: list[Draft] = []
        self.roots: list[tuple[Tensor, Tensor]] = []
        """Per draft the head's state [B, H] and logits [B, V] after the pending token."""

    @override
    def bind(self, target: TargetView) -> None:
        """Do nothing: the inner drafter is bound already."""

    @override
    def observe(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)
        super().observe(outcome)

    @override
    def propose(self, room: Sequence[int]) -> Draft:
        draft = super().propose(room)
        self.drafts.append(draft)
        growth = cast(Any, self.inner).growth
        self.roots.append((growth.state, growth.logits))
        return draft


@dataclass(frozen=True)
class OfficialTree:
    """The draft of one sequence in the official numbering, in which node 0 is the pending token."""

    tokens: Tensor
    """[T] int64."""
    positions: Tensor
    """[T] int64: depths."""
    mask: Tensor
    """[T, T] bool: ancestors and the node itself."""
    paths: list[list[int]]
    """Per leaf, in ascending order, the nodes from 0 to it."""

    def retrieve(self, ordered: bool = False) -> Tensor:
        """The paths [leaves, D], padded with -1; `ordered` sorts them as the official sampling does."""
        width = max(map(len, self.paths))
        far = len(self.tokens) + 1
        rows = (
            sorted(self.paths, key=lambda path: path + [far] * (width - len(path))) if ordered else self.paths
        )
        return torch.tensor([path + [-1] * (width - len(path)) for path in rows])

    def token_paths(self) -> set[tuple[int, ...]]:
        """The tree as a set of token paths, which does not depend on its numbering."""
        return {tuple(self.tokens[row.nonzero()[:, 0]].tolist()) for row in self.mask.bool()}


def official_tree(draft: Draft, pending: int) -> OfficialTree:
    """The first sequence of `draft` as the official code lays it out."""
    size = int(draft.size[0])
    tokens = torch.cat([torch.tensor([pending]), draft.tokens[0, :size].cpu()])
    mask = torch.ones(size + 1, size + 1, dtype=torch.bool).tril()
    mask[1:, 1:] = draft.ancestors[0, :size, :size].cpu()
    parents = set((draft.parents[0, :size] + 1).tolist())
    leaves = [node for node in range(size + 1) if node not in parents]
    paths = [mask[leaf].nonzero()[:, 0].tolist() for leaf in leaves]
    return OfficialTree(tokens, mask.sum(-1) - 1, mask, paths)
