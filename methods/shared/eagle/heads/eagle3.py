"""The head of EAGLE-3 (Li et al. 2025, arXiv 2503.01840) and of EAGLE-3.1 (arXiv 2605.09992).

`fc` fuses the features of several blocks; the layer's attention reads [norm(embedding); norm(state)], twice
as wide as a state. The head has a norm and usually an LM head of its own, over a draft vocabulary. EAGLE-3.1
adds norms: `fc_norm` and `norm_output`.

Shapes: see `base`.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from typing_extensions import override

from harness.drafting.drafter import HiddenTap, TargetView
from harness.drafting.trainable import TrainingRow
from methods.shared.draft_vocabulary import DraftVocabulary
from methods.shared.eagle.config import Evidence, HeadConfig
from methods.shared.eagle.heads.base import AuxLayers, DraftHead, HeadShape
from methods.shared.eagle.heads.layer import Attend, DecoderLayer
from methods.shared.eagle.training import EagleRecipe, Step, unrolled_steps

_SHARPNESS = 32.0
"""Scale of a random head's last norm: its best token then gets most of the probability, as with a trained
head. With a flat distribution, trees would grow only two levels."""


class Eagle3Head(DraftHead):
    """Reads features of several blocks, and drafts from a vocabulary of its own."""

    title: ClassVar[str] = "EAGLE-3"
    method: ClassVar[str] = "eagle3"
    official_layer: ClassVar[str] = "midlayer."
    has_vocabulary_map: ClassVar[bool] = True

    def __init__(self, shape: HeadShape) -> None:
        super().__init__(shape)
        size, eps = shape.hidden_size, shape.rms_norm_eps
        self.norm = nn.RMSNorm(size, eps)
        if shape.fc_norm:
            norms = (nn.RMSNorm(shape.target_hidden_size, eps) for _ in range(shape.num_taps))
            self.fc_norm = nn.ModuleList(norms)
        if shape.norm_before_fc:
            self.input_norm = nn.RMSNorm(shape.feature_size, eps)
        self.register_buffer("d2t", torch.zeros(shape.draft_vocab_size, dtype=torch.int64))

    @staticmethod
    @override
    def fc_width(shape: HeadShape) -> int:
        return shape.feature_size

    @staticmethod
    @override
    def new_layer(shape: HeadShape) -> DecoderLayer:
        return _Layer(shape)

    @classmethod
    @override
    def read_shape(
        cls,
        config: HeadConfig,
        found: Evidence,
        common: dict[str, Any],
        norm_output: bool | None,
        norm_before_residual: bool | None,
    ) -> HeadShape:
        vocab_size, own_lm_head = common["vocab_size"], "lm_head.weight" in found.shapes
        stated = config.draft_vocab_size or (None if own_lm_head else vocab_size)
        draft_vocab_size = found.size("lm_head.weight", 0, "draft_vocab_size", stated)
        fc_norm = found.flag("fc_norm.0.weight", "fc_norm", config.fc_norm)
        norm_before_fc = found.flag("input_norm.weight", "norm_before_fc", config.norm_before_fc)
        if fc_norm and norm_before_fc:
            found.fail("input_norm.weight", "there is fc_norm too, but a head has one or the other.")
        target_hidden = common["target_hidden_size"]
        return HeadShape(
            **common,
            draft_vocab_size=draft_vocab_size,
            num_taps=_num_taps(config, found, target_hidden),
            # The official code gives an EAGLE-3 head none, whatever `bias` says: only `false` can contradict.
            fc_bias=found.flag("fc.bias", "bias", config.bias if "fc.bias" in found.shapes else None),
            norm_before_residual=_given(norm_before_residual, config.norm_before_residual),
            norm_output=_given(norm_output, config.norm_output),
            fc_norm=fc_norm,
            norm_before_fc=norm_before_fc,
            # One that is needed is asked for here, so that it is reported as missing later.
            own_lm_head=own_lm_head
            or draft_vocab_size != vocab_size
            or target_hidden != common["hidden_size"],
        )

    @classmethod
    @override
    def random_shape(cls, common: dict[str, Any], draft_vocab_size: int) -> HeadShape:
        return HeadShape(**common, draft_vocab_size=draft_vocab_size, num_taps=3, own_lm_head=True)

    @override
    def sharpen(self) -> None:
        self.norm.weight.data *= _SHARPNESS

    @override
    def taps(self, num_layers: int, aux: AuxLayers) -> tuple[HiddenTap, ...]:
        # The official code records the residual stream entering these blocks.
        official = (min(2, num_layers - 1), num_layers // 2, max(num_layers - 3, 0))
        layers = aux.chosen or aux.written or official
        point = aux.convention
        if point == "auto":
            # SpecForge writes the numbers of blocks whose output is read, beginning with 1.
            point = "output" if aux.chosen is None and aux.written and aux.written[0] == 1 else "input"
        return tuple(HiddenTap(layer, point) for layer in layers)

    @override
    def project(self, features: Tensor) -> Tensor:
        shape = self.shape
        if shape.fc_norm:
            pieces = torch.split(features, shape.target_hidden_size, dim=-1)
            features = torch.cat([norm(p) for norm, p in zip(self.fc_norm, pieces, strict=True)], dim=-1)
        if shape.norm_before_fc:
            features = self.input_norm(features)
        states: Tensor = self.fc(features)
        return states

    @override
    def forward(
        self,
        embedded: Tensor,
        states: Tensor,
        positions: Tensor,
        attend: Attend,
        rows: Tensor | None = None,
    ) -> Tensor:
        states = self.layer(embedded, states, self.rotary(states, positions), attend, rows)
        return self.norm(states) if self.shape.norm_output else states

    @override
    def normed(self, states: Tensor) -> Tensor:
        return states if self.shape.norm_output else self.norm(states)

    @property
    @override
    def reads_raw_features(self) -> bool:
        return not (self.shape.fc_norm or self.shape.norm_before_fc)

    @override
    def training_steps(
        self,
        features: Tensor,
        row: TrainingRow,
        target: TargetView,
        recipe: EagleRecipe,
        vocabulary: DraftVocabulary,
    ) -> list[Step]:
        return unrolled_steps(self, features, row, target, recipe, vocabulary)


class _Layer(DecoderLayer):
    """A layer whose attention reads the normed embedding beside the normed state."""

    def __init__(self, shape: HeadShape) -> None:
        super().__init__(shape, 2 * shape.hidden_size)
        self._norm_before_residual = shape.norm_before_residual
        self.hidden_norm = nn.RMSNorm(shape.hidden_size, shape.rms_norm_eps)
        self.input_layernorm = nn.RMSNorm(shape.hidden_size, shape.rms_norm_eps)

    @override
    def inputs(self, embedded: Tensor, states: Tensor) -> tuple[Tensor, Tensor]:
        normed = self.hidden_norm(states)
        read = torch.cat([self.input_layernorm(embedded), normed], dim=-1)
        return read, normed if self._norm_before_residual else states


def _given(value: bool | None, stated: bool) -> bool:
    return stated if value is None else value


def _num_taps(config: HeadConfig, found: Evidence, target_hidden: int) -> int:
    """The number of the target's states that `fc` reads."""
    num_aux = None if config.aux_layers is None else len(config.aux_layers)
    if "fc.weight" not in found.shapes:
        return num_aux or 3
    num_taps, rest = divmod(found.shapes["fc.weight"][1], target_hidden)
    if rest or not num_taps:
        found.fail(
            "fc.weight",
            f"its width must be a multiple of {target_hidden}, the target's hidden size according to "
            "config.json (target_hidden_size, else hidden_size).",
        )
    if num_aux not in (None, num_taps):
        found.fail(
            "fc.weight",
            f"it reads {num_taps} states of width {target_hidden}, config.json names {num_aux} layers: "
            f"{list(config.aux_layers or ())}.",
        )
    return num_taps
