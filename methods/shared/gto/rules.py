"""The formulas of GTO (Hu et al. 2025, arXiv 2509.22134, section 3): reward, advantages, surrogate.

Shapes: B trees, n nodes, G groups of m trees, d tokens of a path.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from harness.drafting.draft import TreeShape

RewardName = Literal["lse", "max", "mean", "node_sum"]


class TreeValues(NamedTuple):
    """What trees are worth to a target that gives each node a probability after its parent."""

    reach: Tensor
    """[B, n]: probability that the target accepts a node, the product along its path; 0 at padding."""
    paths: Tensor
    """[B, n]: tokens that are accepted on the path to a node, in expectation (the paper's L)."""
    leaves: Tensor
    """[B, n] bool: nodes without children."""

    @property
    def node_sum(self) -> Tensor:
        """[B]: tokens of the tree that are accepted, in expectation. Unlike the other rewards it is exact:
        it counts a node that several paths share once."""
        return self.reach.sum(-1)

    def reward(self, name: RewardName, eta: float = 1.0) -> Tensor:
        """[B]: the reward of each tree; 0 for one without nodes.

        `lse` is the paper's: between the best path's L and, above it, the logarithm of the number of leaves
        over eta. It adds that bonus whatever eta is: for eta towards 0 it is not the mean. `max` and `mean`
        are over the paths to the leaves, `node_sum` is the expected number of accepted tokens.
        """
        if name == "node_sum":
            return self.node_sum
        grown = self.leaves.any(-1)
        if name == "mean":
            return (self.paths * self.leaves).sum(-1) / self.leaves.sum(-1).clamp(min=1)
        ends = self.paths.masked_fill(~self.leaves, -torch.inf)
        # A row without a leaf gets a finite value before it is replaced, since exp(-inf) - exp(-inf) is NaN.
        ends = torch.where(grown[:, None], ends, 0.0)
        best = ends.max(-1).values if name == "max" else (eta * ends).logsumexp(-1) / eta
        return torch.where(grown, best, 0.0)


def tree_values(trees: TreeShape, probs: Tensor) -> TreeValues:
    """The values of trees whose nodes have these probabilities [B, n] after their parents."""
    above, real = trees.ancestors, trees.real
    reach = torch.where(above, probs[:, None], 1.0).prod(-1) * real
    places = torch.arange(trees.width, device=probs.device)
    has_child = ((trees.parents[:, None] == places[:, None]) & real[:, None]).any(-1)
    return TreeValues(reach, torch.where(above, reach[:, None], 0.0).sum(-1) * real, real & ~has_child)


def accepted_path(trees: TreeShape, likeliest: Tensor) -> Tensor:
    """[B, n] bool: the nodes that the target accepts at temperature 0, from the root down.

    likeliest: [B, n] bool, whether a node's token is the target's most probable one after its parent.
    """
    return torch.where(trees.ancestors, likeliest[:, None], True).all(-1) & trees.real


def advantages(gains: Tensor, delta: float, ddof: int) -> Tensor:
    """[G, m]: the gains of each group, centred and divided by their standard deviation plus delta.

    ddof: 0 for the deviation of the group as a population, 1 for that of a sample. The paper does not say.
    """
    deviation = gains.std(-1, correction=ddof, keepdim=True)
    return (gains - gains.mean(-1, keepdim=True)) / (deviation + delta)


def ratios(log_probs: Tensor, reference: Tensor, lengths: Tensor) -> Tensor:
    """[B]: how much likelier the drafter makes a path than the reference does, per token; 1 for no path.

    log_probs, reference: [B, d], arbitrary beyond a path's own length. lengths: [B].
    """
    inside = torch.arange(log_probs.shape[1], device=lengths.device) < lengths[:, None]
    gain = torch.where(inside, log_probs - reference, 0.0).sum(-1)
    return (gain / lengths.clamp(min=1)).exp()


def surrogate(ratio: Tensor, advantage: Tensor, clip: float) -> Tensor:
    """The loss of every tree, of PPO's form (arXiv 1707.06347): no gradient once the ratio has moved by
    `clip` in the direction that the advantage asks for."""
    return -torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage)
