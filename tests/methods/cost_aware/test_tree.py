"""CostAwareTree: recorded cases, its switches, and what it may depend on."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from harness.drafting.draft import Draft
from harness.drafting.trees import DynamicTree, Proposals
from methods.shared.cost_aware.costs import BucketedCosts
from methods.shared.cost_aware.marginal import num_worthwhile
from methods.shared.cost_aware.rules import TreeChoice
from methods.shared.cost_aware.thresholds import Constants, SpeedupThreshold
from methods.shared.cost_aware.tree import CostAwareTree

VOCAB = 16


class TableGrower:
    """Guesses by the depth of a node and its token, from random tables of each sequence."""

    def __init__(self, seeds: Sequence[int], context: float = 100, sharpness: float = 3.0) -> None:
        self.context = context
        self.num_expanded: list[int] = []
        self._tables = []
        for seed in seeds:
            random = torch.Generator().manual_seed(seed)
            table = torch.randn(VOCAB + 1, VOCAB, generator=random) * sharpness
            self._tables.append(table.log_softmax(-1))

    def _best(self, tokens: Tensor, num_children: int) -> Proposals:
        rows = torch.stack([table[row] for table, row in zip(self._tables, tokens, strict=True)])
        best = rows.topk(num_children)
        return Proposals(best.indices, best.values)

    def start(self, num_children: int) -> Proposals:
        root = torch.full((len(self._tables),), VOCAB)
        return self._best(root, num_children)

    def expand(self, tokens: Tensor, parents: Tensor, num_children: int) -> Proposals:
        self.num_expanded.append(tokens.shape[1])
        return self._best(tokens, num_children)


def costs(
    node: float = 0.02, drafter_node: float = 0.005, drafter_step: float = 0.05, bend: str = "affine"
) -> BucketedCosts:
    """A target step of 1 s and `node` more per token, likewise of the drafter, for up to 80 tokens."""
    tokens = np.arange(80)
    shape = {
        "affine": tokens,
        "flat": 0 * tokens,
        "stepped": tokens // 8 * 8,
        "inverted": tokens - 3.0 * (tokens % 8 == 7),
    }[bend]
    target, drafter = 1 + node * shape, drafter_step + drafter_node * shape
    places = (64, 128)
    return BucketedCosts(
        target={place: target.tolist() for place in places},
        drafter={place: drafter.tolist() for place in places},
        spacing=64,
    )


def tree(given: BucketedCosts | None = None, **options: object) -> CostAwareTree:
    options = {"threshold": Constants(c1=2.0, c2=1.0, c3=2.0), "top_k": 6, "max_width": 6, **options}
    made = CostAwareTree(**options)  # type: ignore[arg-type]
    made.costs = given or costs()
    return made


def grown(policy: CostAwareTree, seeds: Sequence[int] = (1,)) -> tuple[Draft, TreeChoice]:
    draft = policy.grow(TableGrower(seeds))
    assert policy.choice is not None
    return draft, policy.choice


def paths(draft: Draft, row: int) -> list[tuple[int, ...]]:
    found: list[tuple[int, ...]] = []
    for token, parent in zip(draft.tokens[row].tolist(), draft.parents[row].tolist(), strict=True):
        found.append((*(found[parent] if parent >= 0 else ()), token))
    return sorted(found)


@pytest.mark.parametrize("bend", ["affine", "flat", "stepped", "inverted"])
def test_a_draft_is_a_tree_of_distinct_paths_whatever_the_cost_curve(bend: str) -> None:
    draft, choice = grown(tree(costs(bend=bend)), seeds=(1, 2, 3))
    assert draft.size.tolist() == [choice.num_verified] * 3
    for row in range(3):
        assert len(set(paths(draft, row))) == choice.num_verified
        assert (draft.parents[row] < torch.arange(draft.width)).all()


def test_a_batch_has_one_width_per_layer_and_each_sequence_its_own_nodes() -> None:
    policy, grower = tree(), TableGrower((4, 5, 6))
    draft = policy.grow(grower)
    assert policy.choice is not None
    assert grower.num_expanded == [layer.num_nodes for layer in policy.choice.layers[:-1]]
    assert len({tuple(paths(draft, row)) for row in range(3)}) == 3


def test_costs_without_slope_give_the_largest_tree_and_steep_ones_a_single_node() -> None:
    _, widest = grown(tree(costs(bend="flat"), max_depth=4))
    assert [layer.num_nodes for layer in widest.layers] == [6] * 4
    assert widest.num_verified == 24
    _, least = grown(tree(costs(node=50.0, drafter_node=50.0, drafter_step=50.0)))
    assert (len(least.layers), least.layers[0].num_nodes, least.num_verified) == (1, 1, 1)


@pytest.mark.parametrize("seed", range(8))
def test_dearer_nodes_never_make_a_wider_deeper_or_larger_tree(seed: int) -> None:
    found = []
    for factor in (0.25, 1, 4, 16):
        _, choice = grown(tree(costs(node=0.02 * factor, drafter_node=0.005 * factor)), seeds=(seed,))
        found.append((choice.layers[0].num_nodes, len(choice.layers), choice.num_verified))
    for counts in zip(*found, strict=True):
        assert list(counts) == sorted(counts, reverse=True)


def test_without_its_three_choices_it_is_the_tree_of_eagle_2() -> None:
    fixed = tree(breadth=False, depth=False, rerank=False, max_depth=4, max_nodes=15)
    draft, _ = grown(fixed, seeds=(7, 8))
    # EAGLE-2 reranks all children of the expanded nodes, CAST the nodes that were kept; the best 15 of a beam
    # of six lie in both.
    usual = DynamicTree(total_token=16, depth=3, top_k=6).grow(TableGrower((7, 8)))
    for row in range(2):
        assert paths(draft, row) == paths(usual, row)


def test_all_children_of_expanded_nodes_may_be_verified_where_the_paper_keeps_a_few() -> None:
    dear = costs(node=0.001, drafter_node=0.2)
    kept, few = grown(tree(dear), seeds=(7, 8))
    every, many = grown(tree(dear, candidates="all_children"), seeds=(7, 8))
    assert [layer.num_nodes for layer in few.layers] == [layer.num_nodes for layer in many.layers]
    assert few.num_verified == sum(layer.num_nodes for layer in few.layers)
    assert many.num_verified > few.num_verified
    for row in range(2):
        assert set(paths(kept, row)) < set(paths(every, row))


@pytest.mark.parametrize("seed", range(4))
def test_with_all_children_and_no_choice_it_is_exactly_the_tree_of_eagle_2(seed: int) -> None:
    fixed = tree(
        candidates="all_children", breadth=False, depth=False, rerank=False, max_depth=4, max_nodes=40
    )
    draft, _ = grown(fixed, seeds=(seed, seed + 9))
    usual = DynamicTree(total_token=41, depth=3, top_k=6).grow(TableGrower((seed, seed + 9)))
    for row in range(2):
        assert paths(draft, row) == paths(usual, row)
    assert torch.equal(draft.tokens, usual.tokens)
    assert torch.equal(draft.parents, usual.parents)


def test_each_choice_can_be_switched_off_alone() -> None:
    dear = costs(node=0.5, drafter_node=0.2, drafter_step=0.4)
    _, chosen = grown(tree(dear))
    _, wide = grown(tree(dear, breadth=False))
    _, deep = grown(tree(dear, depth=False, max_depth=5))
    _, large = grown(tree(dear, rerank=False, max_nodes=4, depth=False, breadth=False))
    assert chosen.layers[0].num_nodes < wide.layers[0].num_nodes == 6
    assert len(chosen.layers) < len(deep.layers) == 5
    assert chosen.num_verified < large.num_verified == 4


def test_the_context_of_a_layer_counts_the_prefix_unless_told_otherwise() -> None:
    slow = costs()
    dear = BucketedCosts(
        target={64: slow.target[64], 128: slow.target[64]},
        drafter={64: slow.drafter[64], 128: [10.0 * value for value in slow.drafter[64]]},
        spacing=64,
    )
    _, behind_prefix = grown(tree(dear, context="prefix"))
    _, alone = grown(tree(dear, context="draft"))
    assert behind_prefix.layers[0].cost[0] == pytest.approx(10 * alone.layers[0].cost[0])


def test_the_running_speedup_is_the_threshold_and_never_below_vanillas() -> None:
    threshold = SpeedupThreshold(memory=0.5)
    assert threshold.rerank == 1.0
    for _ in range(40):
        threshold.observe(emitted=3.0, cost=1.5)
    assert threshold.breadth == threshold.depth == threshold.rerank == pytest.approx(2.0)
    for _ in range(40):
        threshold.observe(emitted=1.0, cost=2.0)
    assert threshold.speedup == pytest.approx(0.5)
    assert threshold.rerank == 1.0


def test_the_marginal_gain_at_the_best_number_of_nodes_is_the_throughput_itself() -> None:
    confidence = np.sort(np.random.default_rng(3).random(60) ** 3)[::-1]
    utility, cost = np.cumsum(confidence), 1 + 0.05 * np.arange(1, 61)
    speedup, drafting = 1.0, 0.4
    for _ in range(5):
        count = num_worthwhile(utility, cost, speedup)
        speedup = (1 + utility[count - 1]) / (drafting + cost[count - 1])
    best = ((1 + utility) / (drafting + cost)).max()
    assert speedup == pytest.approx(best, rel=1e-6)
