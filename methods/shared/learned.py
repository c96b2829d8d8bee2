"""The copy of a network that is trained while the network itself drafts.

Shapes: F width of the target's features, H hidden size.
"""

from __future__ import annotations

from collections.abc import Iterable
from copy import deepcopy
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

Network = TypeVar("Network", bound=nn.Module)


class LearnedCopy(Generic[Network]):
    """A network in float32 with a gradient, whose weights can be put back into the one that drafts."""

    def __init__(
        self, drafting: Network, reads_features: Tensor | None, frozen: Iterable[nn.Parameter]
    ) -> None:
        """
        Args:
            drafting: the network that drafts.
            reads_features: its weight [H, F] that reads raw features, if any. A step changes all its columns
                alike, however large the features are that they read.
            frozen: its parameters that are not trained.
        """
        names = {id(parameter): name for name, parameter in drafting.named_parameters()}
        self._drafting = drafting
        self._scaled = None if reads_features is None else names[id(reads_features)]
        self._columns = None if reads_features is None else column_scale(reads_features)
        self._frozen = {names[id(parameter)] for parameter in frozen}
        self.network: Network = deepcopy(drafting).float().eval()
        """Takes features that went through `features`."""
        for name, parameter in self.network.named_parameters():
            parameter.requires_grad_(name not in self._frozen)
            if name == self._scaled and self._columns is not None:
                parameter.data.mul_(self._columns)

    def features(self, raw: Tensor) -> Tensor:
        """Features [..., F] of the target as the copy reads them."""
        return raw.float() if self._columns is None else raw.float() / self._columns

    @torch.no_grad()
    def put_back(self) -> None:
        """Give the drafting network the weights that the copy has now."""
        learned = dict(self.network.named_parameters())
        for name, parameter in self._drafting.named_parameters():
            if name in self._frozen:
                continue
            value: Tensor = learned[name]
            if name == self._scaled and self._columns is not None:
                value = value / self._columns
            parameter.copy_(value)


@torch.no_grad()
def column_scale(weight: Tensor) -> Tensor:
    """Powers of two [F] that bring the columns of a weight [H, F] to about the same size.

    A feature a thousand times larger than others has weights a thousand times smaller, and a step of Adam
    would change both by as much. Powers of two, so that multiplying and dividing changes no bit.
    """
    size = weight.float().pow(2).mean(0).sqrt().clamp(min=1e-12)
    scale: Tensor = torch.exp2((size.log2().mean() - size.log2()).round())
    return scale
