"""Trees over recorded tables of a drafter, with a simulated clock: chosen by cost against fixed in hindsight.

The drafter is calibrated, so a tree is expected to bring the sum of its nodes' confidences (specification of
lossless verification: the node-sum identity), and a round costs what the tables say.
"""

from __future__ import annotations

import itertools
from functools import cache

import pytest

from methods.shared.cost_aware.costs import BucketedCosts
from methods.shared.cost_aware.thresholds import SpeedupThreshold
from methods.shared.cost_aware.tree import CostAwareTree
from tests.methods.cost_aware.test_tree import TableGrower, costs

NUM_ROUNDS = 24
TABLES = {
    "flat": costs(node=0.0, drafter_node=0.0, bend="flat"),
    "affine": costs(node=0.03),
    "steep": costs(node=0.15, drafter_node=0.02, drafter_step=0.2),
    "stepped": costs(node=0.06, bend="stepped"),
    "inverted": costs(node=0.06, bend="inverted"),
}


def speedup(tree: CostAwareTree, table: BucketedCosts, num_rows: int = 1) -> float:
    """Expected tokens over costs, of rounds whose drafter differs from round to round."""
    tree.costs = table
    tree.new_call(keep_memory=False)
    tokens = spent = 0.0
    for number in range(NUM_ROUNDS):
        seeds = [num_rows * number + row for row in range(num_rows)]
        draft = tree.grow(TableGrower(seeds, sharpness=1.0 + number % 4))
        assert tree.choice is not None
        assert draft.confidence is not None
        emitted = 1 + float(draft.confidence.sum(-1).mean())
        tokens, spent = tokens + emitted, spent + tree.choice.total_cost
        tree.observe(emitted)
    return tokens / spent


def fixed(width: int, depth: int, nodes: int) -> CostAwareTree:
    return CostAwareTree(
        candidates="all_children",
        top_k=width,
        max_width=width,
        max_depth=depth,
        max_nodes=nodes,
        breadth=False,
        depth=False,
        rerank=False,
    )


def chosen(**settings: object) -> CostAwareTree:
    return CostAwareTree(
        candidates="all_children", threshold=SpeedupThreshold(memory=0.9), **settings  # type: ignore[arg-type]
    )


@cache
def best_fixed(name: str, num_rows: int = 1) -> float:
    sizes = itertools.product((1, 2, 4, 8), (1, 2, 3, 5, 8), (1, 2, 4, 8, 16, 32, 59))
    return max(speedup(fixed(*size), TABLES[name], num_rows) for size in sizes if size[2] <= 8 * size[0] * size[1])


@pytest.mark.parametrize("name", TABLES)
def test_it_is_nearly_as_fast_as_the_best_fixed_tree_in_hindsight(name: str) -> None:
    ours, best, eagle = speedup(chosen(), TABLES[name]), best_fixed(name), speedup(fixed(10, 8, 59), TABLES[name])
    print(name, ours, best, eagle, ours/best, speedup(chosen(candidates="kept") if False else CostAwareTree(), TABLES[name]))
