"""Trees over recorded tables of a drafter, with a simulated clock: chosen by cost against fixed in hindsight.

The drafter is calibrated unless a test says otherwise, so a tree is expected to bring the sum of its nodes'
confidences (the node-sum identity of lossless verification), and a round costs what the tables say.
"""

from __future__ import annotations

import itertools
from functools import cache
from typing import Any

import numpy as np
import pytest

from methods.shared.cost_aware.costs import BucketedCosts
from methods.shared.cost_aware.lookahead import Lookahead
from methods.shared.cost_aware.tree import CostAwareTree
from tests.methods.cost_aware.test_tree import TableGrower, costs

NUM_ROUNDS = 16
TABLES = {
    "flat": costs(node=0.0, drafter_node=0.0, bend="flat"),
    "affine": costs(node=0.03),
    "steep": costs(node=0.15, drafter_node=0.02, drafter_step=0.2),
    "stepped": costs(node=0.06, bend="stepped"),
    "inverted": costs(node=0.06, bend="inverted"),
}


def speedup(tree: CostAwareTree, table: BucketedCosts, honesty: float = 1.0) -> float:
    """Expected tokens over costs, of rounds whose drafter is surer in some than in others.

    honesty: what nodes bring over what they promise.
    """
    tree.costs = table
    tree.new_call(keep_memory=False)
    tokens = spent = 0.0
    for number in range(NUM_ROUNDS):
        draft = tree.grow(TableGrower([number], sharpness=1.0 + number % 4))
        assert tree.choice is not None
        assert draft.confidence is not None
        emitted = 1 + honesty * float(draft.confidence.sum(-1).mean())
        tokens, spent = tokens + emitted, spent + tree.choice.total_cost
        tree.observe(emitted)
    return tokens / spent


def fixed(width: int, depth: int, nodes: int) -> CostAwareTree:
    options: dict[str, Any] = dict.fromkeys(("breadth", "depth", "rerank"), False)
    sizes = {"top_k": width, "max_width": width, "max_depth": depth, "max_nodes": nodes}
    return CostAwareTree(candidates="all_children", **sizes, **options)


def chosen(**settings: Any) -> CostAwareTree:
    return CostAwareTree(**{"candidates": "all_children", "gain": "verified", **settings})


@cache
def best_fixed(name: str) -> float:
    sizes = itertools.product((1, 2, 4, 8), (1, 2, 4, 8), (1, 2, 4, 8, 16, 59))
    return max(
        speedup(fixed(width, depth, nodes), TABLES[name])
        for width, depth, nodes in sizes
        if depth <= nodes <= width + width * width * (depth - 1)
    )


@pytest.mark.parametrize("name", TABLES)
def test_it_is_as_fast_as_the_best_fixed_tree_in_hindsight(name: str) -> None:
    ours = speedup(chosen(), TABLES[name])
    assert ours >= 0.98 * best_fixed(name)
    assert ours > speedup(fixed(10, 8, 59), TABLES[name])


def test_its_gain_over_the_fixed_tree_of_eagle_grows_with_the_cost_of_a_token() -> None:
    gains = []
    for node in (0.01, 0.04, 0.16):
        table = costs(node=node)
        gains.append(speedup(chosen(), table) / speedup(fixed(10, 8, 59), table))
    assert gains == sorted(gains)
    assert gains[-1] > 2


@pytest.mark.parametrize("name", ["affine", "steep", "inverted"])
def test_the_papers_rule_about_layers_overdrafts_where_verifying_is_dear(name: str) -> None:
    paper = chosen(candidates="kept", gain="layer")
    assert speedup(chosen(), TABLES[name]) > 1.05 * speedup(paper, TABLES[name])


@pytest.mark.parametrize("name", ["affine", "steep", "stepped"])
def test_a_head_that_trusts_itself_too_much_is_trusted_less(name: str) -> None:
    plain, calibrated = (
        speedup(chosen(calibrate=switch), TABLES[name], honesty=0.4) for switch in (False, True)
    )
    assert calibrated > plain


@pytest.mark.parametrize("switch", ["breadth", "depth", "rerank"])
def test_each_choice_brings_something_where_tokens_are_dear(switch: str) -> None:
    without = {"breadth": {"breadth": False}, "depth": {"depth": False}, "rerank": {"rerank": False}}[switch]
    assert speedup(chosen(), TABLES["steep"]) > speedup(chosen(**without), TABLES["steep"])


def test_a_gain_is_what_the_best_cut_brings_more_beyond_the_cost_of_verifying() -> None:
    ahead = Lookahead(2)
    for children in ([0.9, 0.9], [0.5, 0.1], [0.7, 0.3]):
        ahead.observe(children)
    assert ahead.children == pytest.approx([0.6, 0.2])
    cost = 1 + 0.25 * np.arange(8)
    gains = ahead.gains(np.array([0.8, 0.1]), np.array([0.8, 0.1]), cost, price=1.0)
    # The child of 0.48 pays 0.25 for its place; those of 0.16, 0.06 and 0.02 do not.
    assert gains == pytest.approx([0.48 - 0.25] * 2)
    assert ahead.gains(np.array([0.8]), np.array([0.8]), cost, price=3.0) == pytest.approx([0.0])
