"""The base of networks that guess several tokens at once: their sizes, layers and draft vocabulary.

Shapes: B sequences, n rows, K guesses of a row, H hidden size, F width of the target's features.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from methods.shared.eagle.heads.layer import Attend, LayerShape, PlainLayer, rope_config


@dataclass(frozen=True, kw_only=True)
class NetworkShape(LayerShape):
    """Everything that determines a network's tensors and arithmetic."""

    num_layers: int
    vocab_size: int
    """The target's."""
    draft_vocab_size: int
    """Tokens that the network can draft."""
    target_hidden_size: int
    """Width of one tapped state."""
    num_taps: int = 3

    @property
    def feature_size(self) -> int:
        """Width of the target's features of one token."""
        return self.num_taps * self.target_hidden_size


class OneCallNetwork(nn.Module, ABC):
    """Layers of Llama's kind, each with weights of its own, and a draft vocabulary."""

    d2t: Tensor
    shape: NetworkShape

    def __init__(self, shape: NetworkShape) -> None:
        super().__init__()
        self.layers = nn.ModuleList(PlainLayer(shape) for _ in range(shape.num_layers))
        self.rotary = LlamaRotaryEmbedding(rope_config(shape))
        self.shape = shape
        self.register_buffer("d2t", torch.zeros(shape.draft_vocab_size, dtype=torch.int64))

    @property
    @abstractmethod
    def feature_layer(self) -> nn.Linear:
        """The layer that reads the target's features; it has no bias."""

    @property
    def embedding(self) -> nn.Module | None:
        """The network's own embedding of the target's tokens; None: the target's is used."""
        return None

    def condition(self, features: Tensor) -> Tensor:
        """Conditions [B, n, H] of rows, from the target's features [B, n, F]."""
        projected: Tensor = self.feature_layer(features)
        return projected

    @abstractmethod
    def forward(
        self,
        conditions: Tensor,
        embedded: Tensor,
        positions: Tensor,
        attend: Callable[[int], Attend],
    ) -> Tensor:
        """Outputs [B, n, K, H] of n rows with K guesses each.

        Args:
            conditions: [B, n, H], see `condition`.
            embedded: [B, n, H], embeddings of the tokens after the features.
            positions: [B, n] int64, the index of the features.
            attend: of layer 0, 1, ...: the attention over the past and these rows.
        """

    @abstractmethod
    def sharpen(self) -> None:
        """Make random weights as confident as trained ones, so that trees grow as deep."""

    def target_ids(self, draft_ids: Tensor) -> Tensor:
        """The target's token ids of draft ids."""
        whole = self.shape.draft_vocab_size == self.shape.vocab_size
        return draft_ids if whole else draft_ids + self.d2t[draft_ids]

    @property
    def drafted_ids(self) -> Tensor:
        """The target's token ids that can be drafted, ascending."""
        return self.d2t + torch.arange(len(self.d2t), device=self.d2t.device)

    def place(self, device: torch.device, dtype: torch.dtype) -> Self:
        """Prepare for drafting on `device`. Only parameters take `dtype`: rotary frequencies stay float32."""
        for parameter in self.parameters():
            parameter.data = parameter.data.to(dtype)
        self.to(device)
        self.eval()
        self.requires_grad_(False)
        return self


def target_layers(num_layers: int) -> Sequence[int]:
    """The blocks of a target of `num_layers` whose outputs are the features."""
    wanted = (1, num_layers // 2 - 1, num_layers - 4)
    return tuple(min(max(layer, 0), num_layers - 1) for layer in wanted)
