"""An average of a training's weights, which is what is evaluated and exported."""

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
