"""A running average of a training's weights, which is what is evaluated and exported."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor


class WeightAverage:
    """An exponential average of parameters (Polyak and Juditsky 1992), or nothing for a decay of 0.

    The decay is at most (1 + t) / (10 + t) at step t, so that the first weights are soon forgotten.
    """

    def __init__(self, parameters: Sequence[Tensor], decay: float) -> None:
        self._parameters, self._decay = parameters, decay
        self.values = [parameter.detach().clone() for parameter in parameters] if decay else []

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after step `step`."""
        if self.values:
            share = 1 - min(self._decay, (1 + step) / (10 + step))
            torch._foreach_lerp_(self.values, list(self._parameters), share)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Within it the parameters have their average values."""
        own = [parameter.detach().clone() for parameter in self._parameters] if self.values else []
        self._set(self.values)
        try:
            yield
        finally:
            self._set(own)

    @torch.no_grad()
    def _set(self, values: Sequence[Tensor]) -> None:
        for parameter, value in zip(self._parameters, values, strict=bool(values)):
            parameter.copy_(value)
