"""The base of networks that guess several tokens at once: their sizes, layers and draft vocabulary."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from methods.shared.eagle.heads.layer import LayerShape, PlainLayer, rope_config


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

    def __init__(self, shape: NetworkShape) -> None:
        super().__init__()
        self.layers = nn.ModuleList(PlainLayer(shape) for _ in range(shape.num_layers))
        self.rotary = LlamaRotaryEmbedding(rope_config(shape))
        self._num_ids = shape.vocab_size, shape.draft_vocab_size
        self.register_buffer("d2t", torch.zeros(shape.draft_vocab_size, dtype=torch.int64))

    @abstractmethod
    def sharpen(self) -> None:
        """Make random weights as confident as trained ones, so that trees grow as deep."""

    def target_ids(self, draft_ids: Tensor) -> Tensor:
        """The target's token ids of draft ids."""
        whole, drafted = self._num_ids
        return draft_ids if whole == drafted else draft_ids + self.d2t[draft_ids]

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
