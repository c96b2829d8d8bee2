"""The decoder layer of a draft head, and everything that its arithmetic depends on.

Shapes: B sequences, n rows, H hidden size of the head, A attention heads, D head dimension.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn
from transformers import LlamaConfig
from transformers.activations import ACT2FN
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb
from typing_extensions import override

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Maps query [B, A, m, D], key and value [B, kv, n, D] (rotated) to the attention's output [B, m, A, D].

Whoever runs the head owns the keys and values of the past: the drafter its cache, the trainer its unrolled
steps.
"""


@dataclass(frozen=True, kw_only=True)
class LayerShape:
    """What determines the tensors and the arithmetic of a decoder layer."""

    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    hidden_act: str = "silu"
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    """10000 where a checkpoint does not give it, whatever the target has."""
    rope_scaling: dict[str, Any] | None = None
    max_position_embeddings: int = 2048
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False


class DecoderLayer(nn.Module):
    """A decoder layer whose attention reads `width` values per row."""

    def __init__(self, shape: LayerShape, width: int) -> None:
        super().__init__()
        self.self_attn = _Attention(shape, width)
        self.mlp = Mlp(shape.hidden_size, shape.intermediate_size, shape.hidden_act, shape.mlp_bias)
        self.post_attention_layernorm = nn.RMSNorm(shape.hidden_size, shape.rms_norm_eps)

    def inputs(self, embedded: Tensor, states: Tensor) -> tuple[Tensor, Tensor]:
        """What attention reads [B, n, width] and what the residual carries [B, n, H]."""
        return states, states

    def forward(
        self,
        embedded: Tensor,
        states: Tensor,
        rotation: tuple[Tensor, Tensor],
        attend: Attend,
        rows: Tensor | None,
    ) -> Tensor:
        """Outputs [B, n, H], or [B, m, H] where `rows` [m] are asked for."""
        read, states = self.inputs(embedded, states)
        if rows is not None:
            states = states[:, rows]
        states = states + self.self_attn(read, rotation, attend, rows)
        output: Tensor = states + self.mlp(self.post_attention_layernorm(states))
        return output


class PlainLayer(DecoderLayer):
    """Llama's layer: a norm before the attention, which reads what the residual carries."""

    def __init__(self, shape: LayerShape) -> None:
        super().__init__(shape, shape.hidden_size)
        self.input_layernorm = nn.RMSNorm(shape.hidden_size, shape.rms_norm_eps)

    @override
    def inputs(self, embedded: Tensor, states: Tensor) -> tuple[Tensor, Tensor]:
        return self.input_layernorm(states), states


class _Attention(nn.Module):
    def __init__(self, shape: LayerShape, width: int) -> None:
        super().__init__()
        self.head_dim = shape.head_dim
        queries, keys = shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
        self.q_proj = nn.Linear(width, queries, bias=shape.qkv_bias)
        self.k_proj = nn.Linear(width, keys, bias=shape.qkv_bias)
        self.v_proj = nn.Linear(width, keys, bias=shape.qkv_bias)
        self.o_proj = nn.Linear(queries, shape.hidden_size, bias=shape.o_bias)
        self.q_norm = nn.RMSNorm(shape.head_dim, shape.rms_norm_eps) if shape.qk_norm else nn.Identity()
        self.k_norm = nn.RMSNorm(shape.head_dim, shape.rms_norm_eps) if shape.qk_norm else nn.Identity()

    def forward(
        self, read: Tensor, rotation: tuple[Tensor, Tensor], attend: Attend, rows: Tensor | None
    ) -> Tensor:
        asking = read if rows is None else read[:, rows]
        query = self.q_norm(self._split(self.q_proj(asking))).transpose(1, 2)
        key = self.k_norm(self._split(self.k_proj(read))).transpose(1, 2)
        value = self._split(self.v_proj(read)).transpose(1, 2)
        if rows is None:
            query, key = apply_rotary_pos_emb(query, key, *rotation)
        else:
            query, _ = apply_rotary_pos_emb(query, query, *(part[:, rows] for part in rotation))
            _, key = apply_rotary_pos_emb(key, key, *rotation)
        output: Tensor = self.o_proj(attend(query, key, value).flatten(2))
        return output

    def _split(self, joined: Tensor) -> Tensor:
        return joined.view(*joined.shape[:2], -1, self.head_dim)


class Mlp(nn.Module):
    """Llama's gated feed-forward part."""

    def __init__(self, size: int, inner: int, activation: str, bias: bool = False) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(size, inner, bias=bias)
        self.up_proj = nn.Linear(size, inner, bias=bias)
        self.down_proj = nn.Linear(inner, size, bias=bias)
        self.act = ACT2FN[activation]

    def forward(self, states: Tensor) -> Tensor:
        """Outputs [B, n, H] of states [B, n, H]."""
        output: Tensor = self.down_proj(self.act(self.gate_proj(states)) * self.up_proj(states))
        return output


class RotaryShape(Protocol):
    """What determines a rotary embedding."""

    @property
    def num_heads(self) -> int:
        """Attention heads."""

    @property
    def head_dim(self) -> int:
        """Values per head."""

    @property
    def rope_theta(self) -> float:
        """The base."""

    @property
    def rope_scaling(self) -> dict[str, Any] | None:
        """As in a config.json."""

    @property
    def max_position_embeddings(self) -> int:
        """The longest text."""


def rope_config(shape: RotaryShape) -> LlamaConfig:
    """The part of a configuration that the rotary embedding of transformers reads.

    The base goes into `rope_parameters`: transformers 5 reads it nowhere else, and takes 10000 in silence.
    """
    rope = dict(shape.rope_scaling or {"rope_type": "default"})
    rope.setdefault("rope_type", rope.pop("type", "default"))
    return LlamaConfig(
        hidden_size=shape.num_heads * shape.head_dim,
        num_attention_heads=shape.num_heads,
        head_dim=shape.head_dim,
        max_position_embeddings=shape.max_position_embeddings,
        rope_parameters={**rope, "rope_theta": shape.rope_theta},
    )
