"""The network of SpecBlock (Shi et al. 2026, arXiv 2605.07243), under the names of its released checkpoints.

Every committed position has K slots, which guess the K tokens after the known one. Position, known token and
slot are summed up in one state per slot. Before every layer but the first, a slot is fused with its
predecessor's output of the layer before, so that guesses depend on one another although all are computed at
once. A small classifier estimates how far down its own list a slot has to be searched.

Shapes: B sequences, n positions, K slots, H hidden size, F width of the target's features, V draft
vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from typing_extensions import override

from methods.shared.eagle.heads.layer import Attend
from methods.shared.one_call.network import NetworkShape, OneCallNetwork

RANK_CLASSES = 4
"""Rank 1, ranks 2 to 4, ranks 5 to 10, and beyond."""
NUM_RANK_FEATURES = 15
_NUM_LISTED = 10
"""Log-probabilities that the rank head reads."""
_RANK_WIDTH = 256
_SHARPNESS = 32.0
"""Scale of a random network's last norm, as of a random EAGLE-3 head."""


@dataclass(frozen=True, kw_only=True)
class BlockShape(NetworkShape):
    """Everything that determines the network's tensors and arithmetic."""

    num_slots: int = 4
    """K, the tokens that a block guesses."""
    num_layers: int = 2
    own_embedding: bool = False
    """The checkpoint has an embedding; else the target's is used."""
    shift: bool = True
    """Slots are fused with their predecessors between layers; without, for an ablation."""
    broadcast: bool = True
    """All slots read the known position; else the first alone does, for an ablation."""


class BlockNetwork(OneCallNetwork):
    """Guesses K tokens after each known one."""

    shape: BlockShape

    def __init__(self, shape: BlockShape) -> None:
        super().__init__(shape)
        size, eps = shape.hidden_size, shape.rms_norm_eps
        self.input_layer = _InputLayer(shape)
        shifts = range(shape.num_layers - 1 if shape.shift else 0)
        self.shift_proj = nn.ModuleList(nn.Linear(2 * size, size, bias=False) for _ in shifts)
        self.norm = nn.RMSNorm(size, eps)
        self.lm_head = nn.Linear(size, shape.draft_vocab_size, bias=False)
        self.rank_head = nn.Sequential(
            nn.Linear(size + NUM_RANK_FEATURES, _RANK_WIDTH, bias=False),
            nn.SiLU(),
            nn.Linear(_RANK_WIDTH, RANK_CLASSES, bias=False),
        )

    @override
    def sharpen(self) -> None:
        self.norm.weight.data *= _SHARPNESS

    @property
    @override
    def feature_layer(self) -> nn.Linear:
        layer: nn.Linear = self.input_layer.condition_proj
        return layer

    @property
    @override
    def embedding(self) -> nn.Module | None:
        return self.input_layer.embed_tokens

    @override
    def forward(
        self,
        conditions: Tensor,
        embedded: Tensor,
        positions: Tensor,
        attend: Callable[[int], Attend],
    ) -> Tensor:
        """Outputs [B, n, K, H] of blocks, before the last norm.

        Args:
            conditions: [B, n, H]: of a first block `condition`, of a later one the output of the slot that it
            starts from.
            embedded: [B, n, H], embeddings of the known tokens.
            positions: [B, n] int64, the index of the known tokens' features; those of the slots follow.
            attend: of layer 0, 1, ...: the attention over the past and these slots, flattened to [B, n * K].
        """
        states: Tensor = self.input_layer(conditions, embedded)
        num_rows, count, slots, size = states.shape
        steps = torch.arange(1, slots + 1, device=positions.device)
        rotation = self.rotary(states, (positions[..., None] + steps).flatten(1))
        for number, layer in enumerate(self.layers):
            if number and self.shape.shift:
                before = torch.cat([states[:, :, :1], states[:, :, :-1]], dim=2)
                states = self.shift_proj[number - 1](torch.cat([states, before], dim=-1))
            flat = states.reshape(num_rows, count * slots, size)
            states = layer(flat, flat, rotation, attend(number), None).view(num_rows, count, slots, size)
        return states

    def logits(self, states: Tensor) -> Tensor:
        """Logits [..., V] of outputs [..., H]."""
        guessed: Tensor = self.lm_head(self.norm(states))
        return guessed

    def rank_logits(self, states: Tensor, logits: Tensor, num_best: int) -> Tensor:
        """Logits [..., 4] of the classes of rank of the target's token, from outputs and their logits.

        No gradient reaches the outputs. num_best: see `rank_features`.
        """
        with torch.no_grad():
            read = torch.cat([self.norm(states), rank_features(logits, num_best).to(states.dtype)], dim=-1)
        ranked: Tensor = self.rank_head(read)
        return ranked


class _InputLayer(nn.Module):
    """Fuses the condition, the known token and the slot; each is normed first."""

    def __init__(self, shape: BlockShape) -> None:
        super().__init__()
        size, eps = shape.hidden_size, shape.rms_norm_eps
        self._broadcast = shape.broadcast
        self.condition_proj = nn.Linear(shape.feature_size, size, bias=False)
        self.condition_norm = nn.RMSNorm(size, eps)
        self.token_norm = nn.RMSNorm(size, eps)
        self.query_norm = nn.RMSNorm(size, eps)
        self.position_queries = nn.Embedding(shape.num_slots, size)
        self.fuse = nn.Linear(3 * size, size, bias=False)
        self.embed_tokens = nn.Embedding(shape.vocab_size, size) if shape.own_embedding else None

    def forward(self, conditions: Tensor, embedded: Tensor) -> Tensor:
        """States [B, n, K, H]."""
        known = torch.cat([self.condition_norm(conditions), self.token_norm(embedded)], dim=-1)
        queries = self.query_norm(self.position_queries.weight)
        slots = len(queries)
        spread = known[:, :, None].expand(-1, -1, slots, -1)
        if not self._broadcast:
            spread = torch.cat([spread[:, :, :1], torch.zeros_like(spread[:, :, 1:])], dim=2)
        read = torch.cat([spread, queries.expand(*known.shape[:2], -1, -1)], dim=-1)
        fused: Tensor = self.fuse(read)
        return fused


def rank_features(logits: Tensor, num_best: int) -> Tensor:
    """What the rank head reads beside the state: [..., 15] float32 of logits [..., V].

    The ten best log-probabilities, the gaps from the best logit to the second, third and fifth, the best
    probability and the entropy, all of the distribution over the `num_best` best tokens alone. Training takes
    20; the released inference takes 10, so its rank head reads what it was not trained on.
    """
    best = logits.float().topk(num_best, dim=-1).values
    log_probs = best.log_softmax(-1)
    probs = log_probs.exp()
    gaps = [best[..., :1] - best[..., place : place + 1] for place in (1, 2, 4)]
    entropy = -(probs * log_probs).sum(-1, keepdim=True)
    return torch.cat([log_probs[..., :_NUM_LISTED], *gaps, probs[..., :1], entropy], dim=-1)
