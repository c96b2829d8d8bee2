"""The network of a draft head: one decoder layer that guesses the target's next features.

`DraftHead` is what drafting, checkpoints and training use of a head; `eagle1` and `eagle3` implement it.

Shapes: B sequences, n rows, H hidden size of the head, F width of the target's features, V draft vocabulary.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding
from typing_extensions import override

from harness.drafting.drafter import HiddenTap, TargetView
from harness.drafting.trainable import TrainingRow
from harness.runtime.attention import grouped
from harness.runtime.cache import SlotCache
from methods.shared.eagle.config import Evidence, HeadConfig
from methods.shared.eagle.heads.layer import Attend, DecoderLayer, LayerShape, rope_config
from methods.shared.eagle.heads.network import HeadNetwork

if TYPE_CHECKING:
    from methods.shared.draft_vocabulary import DraftVocabulary
    from methods.shared.eagle.training import EagleRecipe, Step

Architecture = Literal["eagle", "eagle3"]


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
class HeadShape(LayerShape):
    """Everything that determines a head's tensors and arithmetic; the defaults are the official code's."""

    architecture: Architecture
    vocab_size: int
    """The target's."""
    draft_vocab_size: int
    """Number of tokens that the head can draft."""
    target_hidden_size: int
    """Width of one tapped state."""
    num_taps: int = 1
    fc_bias: bool = False
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
        self.rotary = LlamaRotaryEmbedding(rope_config(shape))
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
