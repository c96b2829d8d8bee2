"""The network of FastEagle (Huang et al. 2025, arXiv 2509.20416): layer i guesses the i-th unknown token.

The paper: three states of the target are fused to one of its width, fused with the embedding of the next
token, and passed through N layers with weights of their own; the target's frozen LM head reads each layer's
output. Not stated there, and chosen here: both inputs of the second fusion are normed, as in EAGLE-3, because
states and embeddings differ in size; every layer has a norm of its own before the LM head; a row stands at
the position of its feature in all layers. The first layer guesses the token after the known one.

Shapes: B sequences, n rows, N layers, H hidden size, F width of the target's features.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from typing_extensions import override

from methods.shared.eagle.heads.layer import Attend
from methods.shared.one_call.network import NetworkShape, OneCallNetwork

_SHARPNESS = 32.0
"""Scale of a random network's last norms, as of a random EAGLE-3 head."""


@dataclass(frozen=True, kw_only=True)
class CascadeShape(NetworkShape):
    """Everything that determines the network's tensors and arithmetic; `num_layers` is N."""


class CascadeNetwork(OneCallNetwork):
    """Guesses N tokens after each known one."""

    shape: CascadeShape

    def __init__(self, shape: CascadeShape) -> None:
        super().__init__(shape)
        size, eps = shape.hidden_size, shape.rms_norm_eps
        self.fc = nn.Linear(shape.feature_size, size, bias=False)
        self.feature_norm = nn.RMSNorm(size, eps)
        self.token_norm = nn.RMSNorm(size, eps)
        self.fuse = nn.Linear(2 * size, size, bias=False)
        self.norms = nn.ModuleList(nn.RMSNorm(size, eps) for _ in range(shape.num_layers))

    @property
    @override
    def feature_layer(self) -> nn.Linear:
        return self.fc

    @override
    def sharpen(self) -> None:
        for norm in self.norms:
            assert isinstance(norm, nn.RMSNorm)
            norm.weight.data *= _SHARPNESS

    @override
    def forward(
        self,
        conditions: Tensor,
        embedded: Tensor,
        positions: Tensor,
        attend: Callable[[int], Attend],
    ) -> Tensor:
        """Outputs [B, n, N, H] of all layers; see `OneCallNetwork.forward`."""
        states = self.fuse(torch.cat([self.feature_norm(conditions), self.token_norm(embedded)], dim=-1))
        rotation, outputs = self.rotary(states, positions), []
        for number, layer in enumerate(self.layers):
            states = layer(states, states, rotation, attend(number), None)
            outputs.append(states)
        return torch.stack(outputs, dim=2)

    def normed(self, outputs: Tensor, level: int) -> Tensor:
        """What the target's LM head reads [..., H] of a layer's outputs [..., H]."""
        states: Tensor = self.norms[level](outputs)
        return states
