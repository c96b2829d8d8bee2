"""BackboneTree: FastEagle's tree, a chain of the likeliest tokens with leaves beside it.

Huang et al. 2025, arXiv 2509.20416: the likeliest token of the first level carries on, the others are side
branches. Not stated there, and chosen here: every level branches so, and side nodes are dropped by their
confidence where a budget is given. A level's distribution does not depend on the tokens before it, so it only
makes sense below the likeliest of them.

Shapes: B sequences, N levels, c children.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from functools import cache
from typing import ClassVar, Protocol, cast

import torch
from pydantic import Field
from torch import Tensor, nn
from typing_extensions import override

from harness.config import ConfigError, configurable
from harness.drafting.draft import Draft
from harness.drafting.trees import Grower, Pool, Proposals, TreePolicy


class LevelGrower(Grower, Protocol):
    """A `Grower` whose network guesses all levels at once; see `CascadeGrowth`."""

    def levels(self, num_children: int) -> Proposals:
        """The likeliest tokens [B, N, c] of every level."""


@configurable
class BackboneTree(TreePolicy):
    """One chain with siblings beside its nodes; siblings have no children."""

    reads_host: ClassVar[Sequence[str]] = ()
    budget: int = Field(default=60, ge=1)
    """Nodes verified, the pending token not counted: those of the chain, then the likeliest siblings."""
    level_widths: tuple[int, ...] = Field(default=(10,), min_length=1)
    """Children of the chain's nodes, level by level; the last number holds for all further levels."""
    keep_backbone: bool = True
    """Whether the chain is kept whatever its confidence; else all nodes compete for the budget."""

    @property
    @override
    def num_drafted(self) -> None:
        """The number of levels is the network's."""
        return None

    @property
    @override
    def num_nodes(self) -> int:
        return self.budget

    @property
    @override
    def num_children(self) -> int:
        return max(self.level_widths)

    @property
    @override
    def num_expanded(self) -> int:
        """None: all levels come of the call that feeds the true rows."""
        return 0

    @override
    def grow(self, grower: Grower) -> Draft:
        if not hasattr(grower, "levels"):
            raise ConfigError(
                "tree: BackboneTree needs a network that guesses all levels at once, as method=fasteagle has;"
                " type methods.NAME.tree=dynamic"
            )
        tokens, log_probs = cast(LevelGrower, grower).levels(self.num_children)
        num_levels = tokens.shape[1]
        widths = [self.level_widths[min(level, len(self.level_widths) - 1)] for level in range(num_levels)]
        # The score of the node above every level, from the pending token on.
        before = nn.functional.pad(log_probs[:, :-1, 0], (1, 0)).cumsum(-1)
        scores = before[..., None] + log_probs
        ranked = scores
        if self.keep_backbone:
            ranked = scores.clone()
            ranked[..., 0] = math.inf
        pool = Pool(
            tokens=_candidates(tokens, widths),
            scores=_candidates(scores, widths),
            parents=_parents(tuple(widths), tokens.device).expand(len(tokens), -1),
        )
        best = _candidates(ranked, widths).sort(dim=1, descending=True, stable=True).indices
        chosen = best[:, : self.budget].sort(dim=1).values
        return pool.draft(chosen, num_levels, is_chain=max(widths) == 1)


@cache
def _parents(widths: tuple[int, ...], device: torch.device) -> Tensor:
    """Pool indices [sum of the widths] of the parents of all candidates, kept because graphs cannot copy."""
    # The chain's node of every level is the first one of the level.
    above = [-1, *itertools.accumulate(widths[:-2], initial=0)][: len(widths)]
    parents = [parent for width, parent in zip(widths, above, strict=True) for _ in range(width)]
    return torch.tensor(parents, device=device)


def _candidates(levels: Tensor, widths: Sequence[int]) -> Tensor:
    """The first `widths` [N] of [B, N, c] in the order of the levels."""
    if min(widths) == levels.shape[-1]:
        return levels.flatten(1)
    return torch.cat([levels[:, level, :width] for level, width in enumerate(widths)], dim=1)
