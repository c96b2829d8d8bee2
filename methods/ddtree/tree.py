"""The best tree under a budget of nodes, where every slot has one distribution whatever is before it.

Shapes: B sequences, k slots, c children, N nodes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from harness.drafting.draft import Draft
from harness.drafting.trees import Pool


def best_first(tokens: Tensor, log_probs: Tensor, budget: int) -> Draft:
    """The `budget` nodes with the highest sums of log-probabilities, as DDTree (arXiv 2604.12989) finds them.

    DDTree takes nodes from a heap. The same nodes are found level by level without a read by the host: a node
    is among the N best only if it is among the N best of its level, as is its parent.

    tokens: [B, k, c] int64, the likeliest of each slot, best first. log_probs: [B, k, c] float32, theirs.
    Of equal nodes the shallower one is taken, then the child of the better parent, then the better sibling.
    """
    num_levels = tokens.shape[1]
    pool_tokens, pool_scores = [tokens[:, 0]], [log_probs[:, 0]]
    pool_parents = [torch.full_like(tokens[:, 0], -1)]
    begin = 0
    for level in range(1, num_levels):
        best = _best(pool_scores[-1], budget)
        above = pool_scores[-1].gather(1, best)
        scores = (above[..., None] + log_probs[:, level, None]).flatten(1)
        kept = _best(scores, budget)
        width = tokens.shape[2]
        begin_next = begin + pool_scores[-1].shape[1]
        pool_parents.append(best.gather(1, kept // width) + begin)
        pool_tokens.append(tokens[:, level].gather(1, kept % width))
        pool_scores.append(scores.gather(1, kept))
        begin = begin_next
    pool = Pool(
        tokens=torch.cat(pool_tokens, 1),
        scores=torch.cat(pool_scores, 1),
        parents=torch.cat(pool_parents, 1),
    )
    chosen = _best(pool.scores, budget).sort(dim=1).values
    return pool.draft(chosen, min(num_levels, chosen.shape[1]))


def _best(scores: Tensor, count: int) -> Tensor:
    """Indices [B, count] of the highest scores, best first; of equal ones the lower index."""
    return scores.sort(dim=1, descending=True, stable=True).indices[:, :count]
