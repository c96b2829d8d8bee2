"""The copy of a network that is trained while the network itself drafts.

Shapes: F width of the target's features, H hidden size, V draft vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable
from copy import deepcopy
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

Network = TypeVar("Network", bound=nn.Module)


class LearnedCopy(Generic[Network]):
    """A network in float32 with a gradient, whose weights can be put back into the one that drafts."""

    def __init__(
        self,
        drafting: Network,
        reads_features: Tensor | None,
        frozen: Iterable[nn.Parameter],
        features: Iterable[nn.Parameter] = (),
    ) -> None:
        """
        Args:
            drafting: the network that drafts.
            reads_features: its weight [H, F] that reads raw features, if any. A step changes all its columns
                alike, however large the features are that they read.
            frozen: its parameters that are not trained.
            features: its parameters [..., F] that this weight reads as it reads features.
        """
        names = {id(parameter): name for name, parameter in drafting.named_parameters()}
        self._drafting = drafting
        self._columns = None if reads_features is None else column_scale(reads_features)
        self._scales: dict[str, Tensor] = {}
        """What the copy's parameters are multiplied by, by name."""
        if self._columns is not None:
            self._scales = {names[id(reads_features)]: self._columns}
            self._scales |= {names[id(one)]: 1 / self._columns for one in features}
        self._frozen = {names[id(parameter)] for parameter in frozen}
        self.network: Network = deepcopy(drafting).float().eval()
        """Takes features that went through `features`."""
        for name, parameter in self.network.named_parameters():
            parameter.requires_grad_(name not in self._frozen)
            if name in self._scales:
                parameter.data.mul_(self._scales[name])

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
            parameter.copy_(learned[name] / self._scales.get(name, 1.0))


def draft_vocabulary(network: Any, device: torch.device) -> Tensor | None:
    """[V] int64: the target's ids of the tokens that a network with a `shape` can draft; None: all, in
    order."""
    shape = network.shape
    if shape.draft_vocab_size == shape.vocab_size:
        return None
    ids: Tensor = network.target_ids(torch.arange(shape.draft_vocab_size, device=device))
    return ids


@torch.no_grad()
def column_scale(weight: Tensor) -> Tensor:
    """Powers of two [F] that bring the columns of a weight [H, F] to about the same size.

    A feature a thousand times larger than others has weights a thousand times smaller, and a step of Adam
    would change both by as much. Powers of two, so that multiplying and dividing changes no bit.
    """
    size = weight.float().pow(2).mean(0).sqrt().clamp(min=1e-12)
    scale: Tensor = torch.exp2((size.log2().mean() - size.log2()).round())
    return scale
