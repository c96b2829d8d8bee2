"""The networks of EAGLE-1/2 and EAGLE-3 heads: one decoder layer that guesses the target's next features.

EAGLE-1/2 (Li et al. 2024, arXiv 2401.15077 and 2406.16858): token embedding and feature, joined by `fc`, go
through a layer without an input norm; its output is the next feature, and the target's LM head reads it.
EAGLE-3 (Li et al. 2025, arXiv 2503.01840): `fc` fuses features of three blocks; the layer's attention reads
[norm(embedding); norm(state)], twice as wide; the head has a norm and an LM head of its own, over a draft
vocabulary. EAGLE-3.1 (arXiv 2605.09992) adds norms: `fc_norm`, `norm_output`.

Shapes: B sequences, n rows, H hidden size of the head, F width of the target's features, V draft vocabulary,
A attention heads, D head dimension.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import LlamaConfig
from transformers.activations import ACT2FN
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

Architecture = Literal["eagle", "eagle3"]
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""query [B, A, m, D], key and value [B, kv, n, D] (rotated) to the attention's output [B, m, A, D].

Whoever runs the head owns its past: the drafter's cache, or the trainer's unrolled steps.
"""


@dataclass(frozen=True, kw_only=True)
class HeadShape:
    """All that decides a head's tensors and arithmetic; the defaults are the official code's.

    vocab_size: the target's. draft_vocab_size: the head's own LM head's. target_hidden_size: of one tapped
    state. rope_theta is 10000 where a checkpoint is silent, whatever the target has. norm_before_residual:
    the residual is the normed state. norm_output: the normed state recurs. fc_norm: a norm for each tapped
    state; norm_before_fc: one over all of them. own_embedding, own_lm_head: the checkpoint has them; else
    they are the target's.
    """

    architecture: Architecture
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    draft_vocab_size: int
    target_hidden_size: int
    num_taps: int = 1
    hidden_act: str = "silu"
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    rope_scaling: dict[str, Any] | None = None
    max_position_embeddings: int = 2048
    fc_bias: bool = False
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    norm_before_residual: bool = False
    norm_output: bool = False
    fc_norm: bool = False
    norm_before_fc: bool = False
    own_embedding: bool = False
    own_lm_head: bool = True

    @property
    def feature_size(self) -> int:
        """F, the width of what the target gives for one token."""
        return self.num_taps * self.target_hidden_size


class Head(nn.Module):
    """A head of either architecture; parameters have the names of the official EAGLE-3 checkpoints,
    with `layer.` for their `midlayer.`.

    Buffer `d2t` [V] int64: target id minus draft id; zeros where the vocabulary is the target's.
    """

    d2t: Tensor

    def __init__(self, shape: HeadShape) -> None:
        super().__init__()
        self.shape = shape
        size, eps = shape.hidden_size, shape.rms_norm_eps
        self.layer = _Layer(shape)
        self.embed_tokens = nn.Embedding(shape.vocab_size, size) if shape.own_embedding else None
        if shape.architecture == "eagle":
            self.fc = nn.Linear(2 * size, size, bias=shape.fc_bias)
        else:
            self.fc = nn.Linear(shape.feature_size, size, bias=shape.fc_bias)
            self.norm = nn.RMSNorm(size, eps)
            if shape.fc_norm:
                norms = (nn.RMSNorm(shape.target_hidden_size, eps) for _ in range(shape.num_taps))
                self.fc_norm = nn.ModuleList(norms)
            if shape.norm_before_fc:
                self.input_norm = nn.RMSNorm(shape.feature_size, eps)
            if shape.own_lm_head:
                self.lm_head = nn.Linear(size, shape.draft_vocab_size, bias=False)
            self.register_buffer("d2t", torch.zeros(shape.draft_vocab_size, dtype=torch.int64))
        self.rotary = LlamaRotaryEmbedding(_rope_config(shape))

    def place(self, device: torch.device, dtype: torch.dtype) -> Head:
        """Ready to draft on `device`. Only parameters take `dtype`: rotary frequencies stay in float32."""
        for parameter in self.parameters():
            parameter.data = parameter.data.to(dtype)
        self.to(device)
        self.eval()
        self.requires_grad_(False)
        return self

    def project(self, features: Tensor) -> Tensor:
        """First states [B, n, H] of the target's features [B, n, F]."""
        shape = self.shape
        if shape.architecture == "eagle":
            return features
        if shape.fc_norm:
            pieces = torch.split(features, shape.target_hidden_size, dim=-1)
            features = torch.cat([norm(p) for norm, p in zip(self.fc_norm, pieces, strict=True)], dim=-1)
        if shape.norm_before_fc:
            features = self.input_norm(features)
        states: Tensor = self.fc(features)
        return states

    def forward(
        self,
        embedded: Tensor,
        states: Tensor,
        positions: Tensor,
        attend: Attend,
        rows: Tensor | None = None,
    ) -> Tensor:
        """States [B, n, H] one token later.

        embedded [B, n, H]: of the token after each state's. positions [B, n] int64: the state's own.
        rows [m]: only these are asked for, which gives [B, m, H]; the others are seen by attention alone.
        """
        if self.shape.architecture == "eagle":
            states = self.fc(torch.cat([embedded, states], dim=-1))
        rotation = self.rotary(states, positions)
        states = self.layer(embedded, states, rotation, attend, rows)
        return self.norm(states) if self.shape.norm_output else states

    def normed(self, states: Tensor) -> Tensor:
        """What the LM head reads of `states` [..., H]."""
        if self.shape.architecture == "eagle" or self.shape.norm_output:
            return states
        normed: Tensor = self.norm(states)
        return normed


class _Layer(nn.Module):
    def __init__(self, shape: HeadShape) -> None:
        super().__init__()
        self.shape = shape
        size, eps = shape.hidden_size, shape.rms_norm_eps
        self.self_attn = _Attention(shape)
        self.mlp = _Mlp(shape)
        self.post_attention_layernorm = nn.RMSNorm(size, eps)
        if shape.architecture == "eagle3":
            self.hidden_norm = nn.RMSNorm(size, eps)
            self.input_layernorm = nn.RMSNorm(size, eps)

    def forward(
        self,
        embedded: Tensor,
        states: Tensor,
        rotation: tuple[Tensor, Tensor],
        attend: Attend,
        rows: Tensor | None,
    ) -> Tensor:
        read = states
        if self.shape.architecture == "eagle3":
            normed = self.hidden_norm(states)
            read = torch.cat([self.input_layernorm(embedded), normed], dim=-1)
            states = normed if self.shape.norm_before_residual else states
        if rows is not None:
            states = states[:, rows]
        states = states + self.self_attn(read, rotation, attend, rows)
        output: Tensor = states + self.mlp(self.post_attention_layernorm(states))
        return output


class _Attention(nn.Module):
    def __init__(self, shape: HeadShape) -> None:
        super().__init__()
        self.head_dim = shape.head_dim
        width = shape.hidden_size * (2 if shape.architecture == "eagle3" else 1)
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


class _Mlp(nn.Module):
    def __init__(self, shape: HeadShape) -> None:
        super().__init__()
        size, inner, bias = shape.hidden_size, shape.intermediate_size, shape.mlp_bias
        self.gate_proj = nn.Linear(size, inner, bias=bias)
        self.up_proj = nn.Linear(size, inner, bias=bias)
        self.down_proj = nn.Linear(inner, size, bias=bias)
        self.act = ACT2FN[shape.hidden_act]

    def forward(self, states: Tensor) -> Tensor:
        output: Tensor = self.down_proj(self.act(self.gate_proj(states)) * self.up_proj(states))
        return output


def _rope_config(shape: HeadShape) -> LlamaConfig:
    """transformers' rotary embedding reads these of a configuration."""
    rope = dict(shape.rope_scaling or {"rope_type": "default"})
    rope.setdefault("rope_type", rope.pop("type", "default"))
    return LlamaConfig(
        hidden_size=shape.num_heads * shape.head_dim,
        num_attention_heads=shape.num_heads,
        head_dim=shape.head_dim,
        max_position_embeddings=shape.max_position_embeddings,
        rope_parameters={**rope, "rope_theta": shape.rope_theta},
    )
