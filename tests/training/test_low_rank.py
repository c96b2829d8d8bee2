"""Training that adds products of two narrow matrices, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from harness.config import ConfigError, build
from harness.training.weights import LowRankUpdates
from tests.training.test_trainer import quiet, trainer


class Added(nn.Module):
    """W0 + B A, differentiated by torch itself."""

    def __init__(self, left: nn.Parameter, right: nn.Parameter) -> None:
        super().__init__()
        self.left, self.right = left, right

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight + self.left @ self.right


def test_the_factors_step_as_they_do_where_torch_differentiates_them() -> None:
    torch.manual_seed(0)
    ours, plain = nn.Linear(5, 3), nn.Linear(5, 3)
    plain.load_state_dict(ours.state_dict())
    updates = LowRankUpdates(ours, 2, seed=1)
    left, right = (nn.Parameter(factor.detach().clone()) for factor in updates.factors)
    plain.requires_grad_(False)
    parametrize.register_parametrization(plain, "weight", Added(left, right))
    optimisers = [torch.optim.AdamW(factors, lr=0.1) for factors in (updates.factors, [left, right])]
    rows, goal = torch.randn(4, 5), torch.randn(4, 3)
    for _ in range(5):
        for module, optimiser in zip((ours, plain), optimisers, strict=True):
            module.zero_grad()
            optimiser.zero_grad()
            (module(rows) - goal).square().sum().backward()
            if module is ours:
                updates.take_gradients()
            optimiser.step()
            updates.apply()
        torch.testing.assert_close(ours.weight, plain.weight)
    assert torch.equal(ours.bias, plain.bias)
    assert left.abs().min() > 0


def test_a_training_changes_matrices_by_their_rank_and_nothing_else(tmp_path: Path) -> None:
    found = trainer(tmp_path, rank=2)
    before = {name: tensor.clone() for name, tensor in found.student.state_dict().items()}
    found.run(quiet, quiet)
    changed = 0
    for name, tensor in found.student.state_dict().items():
        if tensor.ndim < 2:
            assert torch.equal(tensor, before[name]), name
            continue
        sizes = torch.linalg.svdvals(tensor - before[name])
        changed += int(sizes[1] > 0)
        assert not (sizes[2:] > 1e-5 * sizes[0]).any(), name
    assert changed > 5


def test_an_average_has_no_rank_and_what_to_type_is_all_that_is_said() -> None:
    node = {"_target_": "harness.training.trainer.Training", "num_steps": 1, "rank": 2, "average": 0.9}
    with pytest.raises(ConfigError) as refused:
        build(node, "training")
    assert str(refused.value) == (
        "training: rank=2: an average of products has a higher rank; type training.average=0"
    )
