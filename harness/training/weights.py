"""What a training does with weights beside stepping them: their average, and products that are added to them.

Shapes: O outputs, I inputs, r rank.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel


def averaged(module: nn.Module, decay: float) -> AveragedModel:
    """A copy of the module that `update_parameters` makes an exponential average of its weights.

    The decay is at most (1 + t) / (10 + t) at step t, so that the first weights are soon forgotten.
    """

    def average(kept: Tensor, latest: Tensor, step: Tensor | int) -> Tensor:
        return kept.lerp(latest, 1 - min(decay, (1 + int(step)) / (10 + int(step))))

    return AveragedModel(module, avg_fn=average)


@contextmanager
def with_weights_of(average: AveragedModel | None, module: nn.Module) -> Iterator[None]:
    """Within it the module has the averaged weights; None changes nothing."""
    if average is None:
        yield
        return
    own = [parameter.detach().clone() for parameter in module.parameters()]
    _set(module, average.module.parameters())
    try:
        yield
    finally:
        _set(module, own)


@torch.no_grad()
def _set(module: nn.Module, values: Iterator[Tensor] | list[Tensor]) -> None:
    for parameter, value in zip(module.parameters(), values, strict=True):
        parameter.copy_(value)


class LowRankUpdates:
    """Products B A that are added to the matrices of a module, whose other parameters stay as they are.

    LoRA: Hu et al. 2021, arXiv 2106.09685. The module keeps ordinary weights W = W0 + B A, so that losses and
    exports see nothing of it. The gradients of the factors follow from that of W: dB = dW A^T, dA = B^T dW.
    """

    def __init__(self, module: nn.Module, rank: int, seed: int) -> None:
        """B is zero at first, hence the module is unchanged, and A is drawn with `seed`."""
        self._updated: list[tuple[nn.Parameter, Tensor, nn.Parameter, nn.Parameter]] = []
        generator = torch.Generator().manual_seed(seed)
        for weight in module.parameters():
            if weight.ndim != 2 or not weight.requires_grad:
                weight.requires_grad_(False)
                continue
            num_out, num_in = weight.shape
            drawn = torch.randn(rank, num_in, generator=generator) * num_in**-0.5
            left = nn.Parameter(torch.zeros(num_out, rank, device=weight.device))
            right = nn.Parameter(drawn.to(weight.device))
            self._updated.append((weight, weight.detach().clone(), left, right))

    @property
    def weights(self) -> list[nn.Parameter]:
        """The matrices W [O, I], whose gradients are taken."""
        return [weight for weight, _, _, _ in self._updated]

    @property
    def factors(self) -> list[nn.Parameter]:
        """What is trained: B [O, r] and A [r, I] of each matrix."""
        return [factor for _, _, left, right in self._updated for factor in (left, right)]

    @torch.no_grad()
    def take_gradients(self) -> None:
        """Give the factors their gradients, from those of the matrices, which are dropped."""
        for weight, _, left, right in self._updated:
            if weight.grad is not None:
                left.grad, right.grad = weight.grad @ right.T, left.T @ weight.grad
                weight.grad = None

    @torch.no_grad()
    def apply(self) -> None:
        """Bring the module's matrices up to date with the factors."""
        for weight, first, left, right in self._updated:
            weight.copy_(first + left @ right)

    def state(self) -> list[Tensor]:
        """The factors, to be loaded later."""
        return [factor.detach() for factor in self.factors]

    @torch.no_grad()
    def load(self, state: list[Tensor]) -> None:
        """Take over the factors of an earlier `state` of a module that began with the same weights."""
        for factor, value in zip(self.factors, state, strict=True):
            factor.copy_(value)
        self.apply()
