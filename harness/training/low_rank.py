"""Training that changes matrices by products of two narrow ones alone (LoRA: Hu et al. 2021, 2106.09685).

The module keeps ordinary weights W = W0 + B A, so that losses, averages and exports see nothing of it. The
gradients of the factors follow from that of W: dB = dW A^T and dA = B^T dW.

Shapes: O outputs, I inputs, r rank.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class LowRankUpdates:
    """The factors of all matrices of a module that are trained; its other parameters stay as they are."""

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
