"""The network of a draft head: one decoder layer that guesses the target's next features.

`DraftHead` is what drafting, checkpoints and training use of a head; `eagle1` and `eagle3` implement it.

Shapes: B sequences, n rows, H hidden size of the head, F width of the target's features, V draft vocabulary,
A attention heads, D head dimension.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from transformers import LlamaConfig
from transformers.activations import ACT2FN
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb
from typing_extensions import override

from harness.drafting.drafter import HiddenTap, TargetView
from harness.drafting.trainable import TrainingRow
from harness.runtime.attention import grouped
from harness.runtime.cache import SlotCache
from methods.shared.eagle.config import Evidence, HeadConfig
from methods.shared.eagle.heads.network import HeadNetwork

if TYPE_CHECKING:
    from methods.shared.eagle.training import DraftVocabulary, EagleRecipe, Step

Architecture = Literal["eagle", "eagle3"]
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Maps query [B, A, m, D], key and value [B, kv, n, D] (rotated) to the attention's output [B, m, A, D].

Whoever runs the head owns the keys and values of the past: the drafter its cache, the trainer its unrolled
steps.
"""


@dataclass(frozen=True, kw_only=True)
class AuxLayers:
    """Which blocks of the target a head that reads several states taps."""

    chosen: tuple[int, ...] | None
    """Blocks that the user names; None: those that the checkpoint names, else the official ones."""
    written: tuple[int, ...] | None
    """Blocks that the checkpoint's config.json names."""
    convention: Literal["auto", "input", "output"]
    """Whether a block's number stands for its input or for its output."""


@dataclass(frozen=True, kw_only=True)
class HeadShape:
    """Everything that determines a head's tensors and arithmetic; the defaults are the official code's."""

    architecture: Architecture
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    """The target's."""
    draft_vocab_size: int
    """Number of tokens that the head can draft."""
    target_hidden_size: int
    """Width of one tapped state."""
    num_taps: int = 1
    hidden_act: str = "silu"
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    """10000 where a checkpoint does not give it, whatever the target has."""
    rope_scaling: dict[str, Any] | None = None
    max_position_embeddings: int = 2048
    fc_bias: bool = False
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    norm_before_residual: bool = False
    """The residual carries the normed state."""
    norm_output: bool = False
    """The normed state is fed back (EAGLE-3.1, arXiv 2605.09992)."""
    fc_norm: bool = False
    """Each tapped state has a norm of its own (EAGLE-3.1)."""
    norm_before_fc: bool = False
    """One norm spans all tapped states."""
    own_embedding: bool = False
    """The checkpoint has an embedding; else the target's is used."""
    own_lm_head: bool = True
    """The checkpoint has an LM head; else the target's is used."""

    @property
    def feature_size(self) -> int:
        """F, the width of the target's features of one token."""
        return self.num_taps * self.target_hidden_size


class DraftHead(HeadNetwork):
    """A head of any generation. Its parameters have the names of the official EAGLE-3 checkpoints, with
    `layer.` in place of their `midlayer.`.
    """

    title: ClassVar[str]
    """The generation's name for people."""
    method: ClassVar[str]
    """A method of `conf/method` that runs it, for advice in error messages."""
    official_layer: ClassVar[str]
    """Prefix of the layer's tensors in official checkpoints."""
    has_vocabulary_map: ClassVar[bool]
    """Whether it may draft from a part of the target's vocabulary: buffer `d2t` [V] int64, target id minus
    draft id."""

    d2t: Tensor

    def __init__(self, shape: HeadShape) -> None:
        super().__init__()
        self.shape = shape
        self.layer = self.new_layer(shape)
        self.embed_tokens = nn.Embedding(shape.vocab_size, shape.hidden_size) if shape.own_embedding else None
        self.rotary = LlamaRotaryEmbedding(_rope_config(shape))
        size = shape.hidden_size
        self.fc = nn.Linear(self.fc_width(shape), size, bias=shape.fc_bias)
        # None: the target's LM head is used, as it always is where the head drafts the target's vocabulary.
        owns = shape.own_lm_head and self.has_vocabulary_map
        self.lm_head = nn.Linear(size, shape.draft_vocab_size, bias=False) if owns else None

    @staticmethod
    @abstractmethod
    def fc_width(shape: HeadShape) -> int:
        """Values of a row that `fc` reads."""

    @staticmethod
    def new_layer(shape: HeadShape) -> DecoderLayer:
        """The head's decoder layer."""
        return DecoderLayer(shape, shape.hidden_size)

    @classmethod
    @abstractmethod
    def read_shape(
        cls,
        config: HeadConfig,
        found: Evidence,
        common: dict[str, Any],
        norm_output: bool | None,
        norm_before_residual: bool | None,
    ) -> HeadShape:
        """The shape of a checkpoint; `common` holds the fields that all generations read alike.

        The flags, where not None, override config.json.

        Raises:
            ConfigError: tensors and configuration contradict each other, or neither gives a field.
        """

    @classmethod
    @abstractmethod
    def random_shape(cls, common: dict[str, Any], draft_vocab_size: int) -> HeadShape:
        """The shape of a head without a checkpoint; `common` as for `read_shape`."""

    def sharpen(self) -> None:
        """Make random weights as confident as trained ones, so that trees grow as deep."""

    @abstractmethod
    def taps(self, num_layers: int, aux: AuxLayers) -> tuple[HiddenTap, ...]:
        """The states of a target of `num_layers` blocks that `project` reads, in order."""

    @property
    @override
    def feature_size(self) -> int:
        return self.shape.feature_size

    @property
    @override
    def dtype(self) -> torch.dtype:
        return self.fc.weight.dtype

    @override
    def advance(
        self,
        tokens: Tensor,
        states: Tensor,
        positions: Tensor,
        mask: Tensor,
        cache: SlotCache,
        target: TargetView,
    ) -> Tensor:
        embed = self.embed_tokens or target.embed

        def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            keys, values = cache.update(key, value, 0)
            return grouped(self, query, keys, values, mask)[0]

        output: Tensor = self(embed(tokens).to(states.dtype), states, positions, attend)
        return output

    @abstractmethod
    def forward(
        self,
        embedded: Tensor,
        states: Tensor,
        positions: Tensor,
        attend: Attend,
        rows: Tensor | None = None,
    ) -> Tensor:
        """States [B, n, H] one token later.

        Args:
            embedded: [B, n, H], the embedding of the token after each state's.
            states: [B, n, H].
            positions: [B, n] int64, the states' own.
            attend: the attention over the past and these rows.
            rows: [m] int64: computes only these, which gives [B, m, H]; attention still sees all of them.
        """

    @abstractmethod
    def normed(self, states: Tensor) -> Tensor:
        """What the LM head reads, from `states` [..., H]."""

    @override
    def logits(self, states: Tensor, target: TargetView) -> Tensor:
        normed = self.normed(states)
        if self.lm_head is None:
            return target.lm_head(normed.to(target.dtype)).to(states.device)
        logits: Tensor = self.lm_head(normed)
        return logits

    @override
    def target_ids(self, draft_ids: Tensor) -> Tensor:
        if self.shape.draft_vocab_size == self.shape.vocab_size:
            return draft_ids
        return draft_ids + self.d2t[draft_ids]

    @property
    def reads_raw_features(self) -> bool:
        """Whether nothing normalises the features, so that training has to scale them."""
        return False

    @abstractmethod
    def training_steps(
        self,
        features: Tensor,
        row: TrainingRow,
        target: TargetView,
        recipe: EagleRecipe,
        vocabulary: DraftVocabulary,
    ) -> Sequence[Step]:
        """The losses of a row, one per position of the draft. features [L, F]."""

    def place(self, device: torch.device, dtype: torch.dtype) -> DraftHead:
        """Prepare for drafting on `device`. Only parameters take `dtype`: rotary frequencies stay float32."""
        for parameter in self.parameters():
            parameter.data = parameter.data.to(dtype)
        self.to(device)
        self.eval()
        self.requires_grad_(False)
        return self


class DecoderLayer(nn.Module):
    """A decoder layer whose attention reads `width` values per row."""

    def __init__(self, shape: HeadShape, width: int) -> None:
        super().__init__()
        self.self_attn = _Attention(shape, width)
        self.mlp = _Mlp(shape)
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


class _Attention(nn.Module):
    def __init__(self, shape: HeadShape, width: int) -> None:
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
    """The part of a configuration that the rotary embedding of transformers reads."""
    rope = dict(shape.rope_scaling or {"rope_type": "default"})
    rope.setdefault("rope_type", rope.pop("type", "default"))
    return LlamaConfig(
        hidden_size=shape.num_heads * shape.head_dim,
        num_attention_heads=shape.num_heads,
        head_dim=shape.head_dim,
        max_position_embeddings=shape.max_position_embeddings,
        rope_parameters={**rope, "rope_theta": shape.rope_theta},
    )
