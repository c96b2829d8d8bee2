"""The network of block drafters: decoder layers whose keys and values also come from the target's features.

DFlash (arXiv 2602.06036): `hidden_norm(fc(features))` gives one row per committed token, and every layer
projects keys and values from these rows directly and from the block's rows, queries from the block alone.
DFlash2 puts a short convolution around attention and MLP, whose kernels depend on its input.

Shapes: B sequences (in training one, with all blocks in it), m context rows, n rows of blocks, H hidden size,
F width of the target's features, A attention heads, K key heads, D head dimension, V draft vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

from harness.drafting.drafter import TargetView
from methods.shared.block.networks.correction import ConfidenceHead, MarkovHead
from methods.shared.block.networks.selector import CandidateSelector
from methods.shared.block.shape import BlockShape
from methods.shared.draft_vocabulary import linear_of, lm_head_rows
from methods.shared.eagle.heads.layer import Mlp, rope_config

Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""Maps a layer's number, query [B, A, n, D], key and value [B, K, n, D] (rotated) to the attention's output
[B, n, A, D]. Whoever runs the network owns the keys and values of the context."""


class BlockNetwork(nn.Module):
    """A block drafter. Its parameters have the names of z-lab's and DeepSpec's checkpoints."""

    d2t: Tensor

    def __init__(self, shape: BlockShape) -> None:
        super().__init__()
        self.shape = shape
        size, eps = shape.hidden_size, shape.rms_norm_eps
        self.fc = nn.Linear(shape.feature_size, size, bias=False)
        self.hidden_norm = nn.RMSNorm(size, eps)
        self.layers = nn.ModuleList(_Layer(shape) for _ in range(shape.num_layers))
        self.norm = nn.RMSNorm(size, eps)
        self.rotary = LlamaRotaryEmbedding(rope_config(shape))
        self.embed_tokens = nn.Embedding(shape.vocab_size, size) if shape.own_embedding else None
        self.lm_head = nn.Linear(size, shape.draft_vocab_size, bias=False) if shape.own_lm_head else None
        self.markov_head = MarkovHead(shape) if shape.markov else None
        self.confidence_head = ConfidenceHead(shape) if shape.confidence else None
        self.candidate_selector = CandidateSelector(shape) if shape.selector_rank else None
        # Target id minus draft id.
        self.register_buffer("d2t", torch.zeros(shape.draft_vocab_size, dtype=torch.int64))

    def project(self, features: Tensor) -> Tensor:
        """Context rows [B, m, H] from the target's features [B, m, F]."""
        rows: Tensor = self.hidden_norm(self.fc(features))
        return rows

    def context(self, rows: Tensor, positions: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Per layer the keys and values [B, K, m, D] of context rows [B, m, H] at positions [B, m]."""
        rotation = self.rotary(rows, positions)
        found = []
        for layer in cast("list[_Layer]", self.layers):
            key, value = layer.self_attn.key_value(rows)
            found.append((apply_rotary_pos_emb(key, key, *rotation)[0], value))
        return found

    def forward(self, embedded: Tensor, positions: Tensor, attend: Attend) -> Tensor:
        """States [B, n, H], after the final norm, of the rows of blocks.

        embedded: [B, n, H]. positions: [B, n] int64. attend: the attention over context and block.
        """
        states, rotation = embedded, self.rotary(embedded, positions)
        for number, layer in enumerate(self.layers):
            states = layer(states, rotation, number, attend)
        output: Tensor = self.norm(states)
        return output

    def embed(self, ids: Tensor, target: TargetView) -> Tensor:
        """What the first layer reads [..., H] of token ids [...]."""
        embed = self.embed_tokens or target.embed
        embedded: Tensor = embed(ids).to(self.fc.weight.dtype)
        scale = self.shape.embedding_scale
        return embedded if scale == 1.0 else embedded * scale

    def logits(self, states: Tensor, target: TargetView) -> Tensor:
        """Logits [..., V] over the draft vocabulary, from states [..., H] after the final norm."""
        if self.lm_head is None:
            logits = target.lm_head(states.to(target.dtype)).to(states.device)
        else:
            logits = self.lm_head(states.to(self.lm_head.weight.dtype))
        shape = self.shape
        if shape.output_multiplier != 1.0:
            logits = logits * shape.output_multiplier
        return logits if shape.softcap is None else shape.softcap * torch.tanh(logits / shape.softcap)

    @torch.no_grad()
    def take_lm_head(self, target: TargetView) -> None:
        """Copy the target's LM head over the draft vocabulary, where that is smaller and the head has none.

        The copy is not trained, and not written with the head.
        """
        shape = self.shape
        if shape.own_lm_head or shape.draft_vocab_size == shape.vocab_size:
            return
        ids = self.d2t + torch.arange(len(self.d2t), device=self.d2t.device)
        self.lm_head = linear_of(*lm_head_rows(target, ids))

    def target_ids(self, draft_ids: Tensor) -> Tensor:
        """The target's token ids of draft ids."""
        if self.shape.draft_vocab_size == self.shape.vocab_size:
            return draft_ids
        return draft_ids + self.d2t[draft_ids]

    def place(self, device: torch.device, dtype: torch.dtype) -> BlockNetwork:
        """Prepare for drafting on `device`. Only parameters take `dtype`: rotary frequencies stay float32."""
        for parameter in self.parameters():
            parameter.data = parameter.data.to(dtype)
        self.to(device)
        self.eval()
        self.requires_grad_(False)
        return self


class _Layer(nn.Module):
    def __init__(self, shape: BlockShape) -> None:
        super().__init__()
        size, eps = shape.hidden_size, shape.rms_norm_eps
        self.self_attn = _Attention(shape)
        self.mlp = Mlp(size, shape.intermediate_size, shape.hidden_act)
        self.input_layernorm = nn.RMSNorm(size, eps)
        self.post_attention_layernorm = nn.RMSNorm(size, eps)
        self.attention_conv = BlockConvolution(shape) if shape.conv_kernel else None
        self.mlp_conv = BlockConvolution(shape) if shape.conv_kernel else None

    def forward(self, states: Tensor, rotation: tuple[Tensor, Tensor], number: int, attend: Attend) -> Tensor:
        def attention(read: Tensor) -> Tensor:
            output: Tensor = self.self_attn(read, rotation, number, attend)
            return output

        states = states + _convolved(self.attention_conv, self.input_layernorm(states), attention)
        return states + _convolved(self.mlp_conv, self.post_attention_layernorm(states), self.mlp)


def _convolved(
    convolution: BlockConvolution | None, read: Tensor, inner: Callable[[Tensor], Tensor]
) -> Tensor:
    """`inner` over `read`, with a convolution before and behind it where there is one."""
    if convolution is None:
        return inner(read)
    before, behind = convolution.kernels(read)
    return convolution.over(inner(convolution.over(read, before)), behind)


class BlockConvolution(nn.Module):
    """A causal convolution over the slots of a block, with kernels of the weights and of the input.

    It sees no slot of another block, and no context row.
    """

    def __init__(self, shape: BlockShape) -> None:
        super().__init__()
        size, self.num_taps, self.group = shape.hidden_size, shape.conv_kernel, shape.conv_group
        self.block_size = shape.block_size
        self.base_kernel = nn.Parameter(torch.zeros(2, self.num_taps, size))
        self.kernel_projection = nn.Linear(size, 2 * self.num_taps * size // self.group, bias=False)

    def kernels(self, read: Tensor) -> tuple[Tensor, Tensor]:
        """The kernels [B, n, taps, H] before and behind the sub-layer that reads `read` [B, n, H]."""
        dynamic = self.kernel_projection(read).unflatten(-1, (2, self.num_taps, -1))
        both = self.base_kernel + dynamic.repeat_interleave(self.group, dim=-1)
        return both[:, :, 0], both[:, :, 1]

    def over(self, states: Tensor, kernel: Tensor) -> Tensor:
        """The convolution of states [B, n, H]; n is one block, or several whole ones."""
        num_rows, count, size = states.shape
        width = min(self.block_size, count)
        blocks = states.reshape(-1, width, size)
        total = torch.zeros_like(states)
        for tap in range(self.num_taps):
            earlier = pad(blocks, (0, 0, tap, 0))[:, :width].reshape(num_rows, count, size)
            total = total + kernel[:, :, tap] * earlier
        return total


class _Attention(nn.Module):
    def __init__(self, shape: BlockShape) -> None:
        super().__init__()
        self.head_dim, size, bias = shape.head_dim, shape.hidden_size, shape.attention_bias
        queries, keys = shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
        self.q_proj = nn.Linear(size, queries, bias=bias)
        self.k_proj = nn.Linear(size, keys, bias=bias)
        self.v_proj = nn.Linear(size, keys, bias=bias)
        self.o_proj = nn.Linear(queries, size, bias=bias)
        self.q_norm = nn.RMSNorm(shape.head_dim, shape.rms_norm_eps) if shape.qk_norm else nn.Identity()
        self.k_norm = nn.RMSNorm(shape.head_dim, shape.rms_norm_eps) if shape.qk_norm else nn.Identity()

    def key_value(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Keys, not rotated, and values [B, K, m, D] of rows [B, m, H]."""
        key: Tensor = self.k_norm(self._split(self.k_proj(rows))).transpose(1, 2)
        return key, self._split(self.v_proj(rows)).transpose(1, 2)

    def forward(self, read: Tensor, rotation: tuple[Tensor, Tensor], number: int, attend: Attend) -> Tensor:
        query = self.q_norm(self._split(self.q_proj(read))).transpose(1, 2)
        key, value = self.key_value(read)
        query, key = apply_rotary_pos_emb(query, key, *rotation)
        output: Tensor = self.o_proj(attend(number, query, key, value).flatten(2))
        return output

    def _split(self, joined: Tensor) -> Tensor:
        return joined.view(*joined.shape[:2], -1, self.head_dim)
