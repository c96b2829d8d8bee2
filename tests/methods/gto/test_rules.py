"""The formulas of GTO against enumeration, finite differences and their own bounds."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from harness.drafting.draft import TreeShape
from methods.shared.gto.rules import accepted_path, advantages, ratios, surrogate, tree_values


def random_trees(count: int, width: int, seed: int = 0) -> tuple[TreeShape, torch.Tensor]:
    """Trees of different sizes whose siblings have at most all of the probability."""
    generator = torch.Generator().manual_seed(seed)
    drawn = [torch.randint(-1, node, (count,), generator=generator) for node in range(width)]
    parents = torch.stack(drawn, 1)
    size = torch.randint(0, width + 1, (count,), generator=generator)
    probs = torch.rand(count, width, generator=generator, dtype=torch.float64)
    siblings = (parents[:, :, None] == parents[:, None]).sum(-1)
    return TreeShape(parents=parents, size=size), probs / siblings


def expected_by_enumeration(parents: list[int], probs: list[float]) -> float:
    """Mean length of the accepted path over all outcomes, each node being accepted or not."""
    total = 0.0
    for accepts in itertools.product((0, 1), repeat=len(parents)):
        # At a node at most one child is the target's: outcomes with two accepted siblings do not occur.
        chosen = [parents[node] for node in range(len(parents)) if accepts[node]]
        if len(set(chosen)) < len(chosen):
            continue
        weight = 1.0
        for parent in {*parents}:
            children = [node for node in range(len(parents)) if parents[node] == parent]
            taken = [node for node in children if accepts[node]]
            weight *= probs[taken[0]] if taken else 1 - sum(probs[node] for node in children)
        length, here = 0, -1
        while following := [n for n in range(len(parents)) if parents[n] == here and accepts[n]]:
            here, length = following[0], length + 1
        total += weight * length
    return total


def test_the_node_sum_is_the_expected_number_of_accepted_tokens() -> None:
    trees, probs = random_trees(12, 7)
    values = tree_values(trees, probs)
    for row, size in enumerate(trees.size.tolist()):
        exact = expected_by_enumeration(trees.parents[row, :size].tolist(), probs[row, :size].tolist())
        assert float(values.node_sum[row]) == pytest.approx(exact, abs=1e-12)


@pytest.mark.parametrize("eta", [0.1, 1.0, 7.0])
def test_rewards_keep_their_bounds_and_a_tree_without_nodes_has_none(eta: float) -> None:
    trees, probs = random_trees(200, 9)
    values = tree_values(trees, probs)
    best, mean, lse = (values.reward(name, eta) for name in ("max", "mean", "lse"))
    leaves = values.leaves.sum(-1).double()
    empty = trees.size == 0
    assert empty.any()
    for reward in (best, mean, lse, values.node_sum):
        assert (reward[empty] == 0).all()
    assert (mean <= best + 1e-12).all()
    assert (best <= lse + 1e-12).all()
    assert (lse <= best + leaves.clamp(min=1).log() / eta + 1e-12).all()
    assert (best <= values.node_sum + 1e-12).all()


def test_lse_may_order_two_trees_against_their_expected_acceptance() -> None:
    """Two certain tokens against ten siblings of a tenth each."""
    chain = TreeShape(parents=torch.tensor([[-1, 0]]), size=torch.tensor([2]))
    fan = TreeShape(parents=torch.full((1, 10), -1), size=torch.tensor([10]))
    certain = tree_values(chain, torch.ones(1, 2, dtype=torch.float64))
    spread = tree_values(fan, torch.full((1, 10), 0.1, dtype=torch.float64))
    assert float(certain.node_sum) > float(spread.node_sum)
    assert float(certain.reward("lse")) < float(spread.reward("lse"))
    assert float(spread.reward("lse")) == pytest.approx(0.1 + math.log(10))


def test_the_accepted_path_is_the_run_of_likeliest_tokens_from_the_root() -> None:
    trees = TreeShape(parents=torch.tensor([[-1, -1, 1, 1, 2, 0]]), size=torch.tensor([5]))
    likeliest = torch.tensor([[False, True, True, False, True, True]])
    assert accepted_path(trees, likeliest).tolist() == [[False, True, True, False, True, False]]


def test_advantages_are_centred_and_scaled_and_equal_gains_have_none() -> None:
    gains = torch.rand(5, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    gains[4] = 0.3
    for ddof in (0, 1):
        found = advantages(gains, 1e-6, ddof)
        torch.testing.assert_close(found.mean(-1), torch.zeros(5, dtype=torch.float64), atol=1e-9, rtol=0)
        torch.testing.assert_close(
            found[:4].std(-1, correction=ddof), torch.ones(4, dtype=torch.float64), atol=1e-4, rtol=0
        )
        assert float(found[4].abs().max()) < 1e-9


def test_the_gradient_is_the_finite_difference_and_vanishes_beyond_the_clip() -> None:
    before = -torch.rand(6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    lengths = torch.tensor([3, 2, 1, 0, 3, 3])
    inside = torch.arange(3) < lengths[:, None]
    before = before * inside
    # The last two have moved beyond the clip: one in the direction of its advantage, one against it.
    shift = torch.tensor([0.05, -0.1, 0.02, 0.0, 0.5, 0.5], dtype=torch.float64)
    now = ((before + shift[:, None]) * inside).requires_grad_(True)
    advantage = torch.tensor([1.0, -0.5, 2.0, 0.7, 1.3, -1.1], dtype=torch.float64)

    def loss(log_probs: torch.Tensor) -> torch.Tensor:
        return surrogate(ratios(log_probs, before, lengths), advantage, 0.2).mean()

    assert torch.autograd.gradcheck(loss, now)
    (gradient,) = torch.autograd.grad(loss(now), now)
    assert (gradient[4] == 0).all()
    assert (gradient[5] > 0).all()
    assert (gradient[3] == 0).all()
    ratio = ratios(now, before, lengths)
    assert float(ratio[3].detach()) == 1
    wanted = -advantage * ratio / (6 * lengths.clamp(min=1))
    for row in (0, 1, 2, 5):
        torch.testing.assert_close(gradient[row][inside[row]], wanted[row].expand(int(lengths[row])).detach())
