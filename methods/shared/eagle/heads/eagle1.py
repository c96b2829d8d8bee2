"""The head of EAGLE-1 and EAGLE-2 (Li et al. 2024, arXiv 2401.15077 and 2406.16858).

`fc` joins the token's embedding and the feature; they go through a decoder layer without an input norm, whose
output is the next feature. The target's LM head reads it.

Shapes: see `base`.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from harness.drafting.drafter import HiddenTap, TargetView
from harness.drafting.trainable import TrainingRow
from methods.shared.draft_vocabulary import DraftVocabulary
from methods.shared.eagle.config import Evidence, HeadConfig
from methods.shared.eagle.heads.base import AuxLayers, DraftHead, HeadShape
from methods.shared.eagle.heads.layer import Attend
from methods.shared.eagle.training import EagleRecipe, Step, regression_step


class Eagle1Head(DraftHead):
    """Reads the target's final features one by one."""

    title: ClassVar[str] = "EAGLE-1/2"
    method: ClassVar[str] = "eagle2"
    official_layer: ClassVar[str] = "layers.0."
    has_vocabulary_map: ClassVar[bool] = False

    @staticmethod
    @override
    def fc_width(shape: HeadShape) -> int:
        return 2 * shape.hidden_size

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
        found.size("fc.weight", 1, "2 * hidden_size", 2 * common["hidden_size"])
        bias = _has_bias(config, found)
        return HeadShape(**common, draft_vocab_size=common["vocab_size"], fc_bias=bias, own_lm_head=False)

    @classmethod
    @override
    def random_shape(cls, common: dict[str, Any], draft_vocab_size: int) -> HeadShape:
        return HeadShape(**common, draft_vocab_size=common["vocab_size"], own_lm_head=False)

    @override
    def taps(self, num_layers: int, aux: AuxLayers) -> tuple[HiddenTap, ...]:
        return (HiddenTap(-1, "normed"),)

    @override
    def project(self, features: Tensor) -> Tensor:
        return features

    @override
    def forward(
        self,
        embedded: Tensor,
        states: Tensor,
        positions: Tensor,
        attend: Attend,
        rows: Tensor | None = None,
    ) -> Tensor:
        states = self.fc(torch.cat([embedded, states], dim=-1))
        output: Tensor = self.layer(embedded, states, self.rotary(states, positions), attend, rows)
        return output

    @override
    def normed(self, states: Tensor) -> Tensor:
        return states

    @override
    def training_steps(
        self,
        features: Tensor,
        row: TrainingRow,
        target: TargetView,
        recipe: EagleRecipe,
        vocabulary: DraftVocabulary,
    ) -> list[Step]:
        return [regression_step(self, features, row, target, recipe)]


def _has_bias(config: HeadConfig, found: Evidence) -> bool:
    expected = config.bias_expected if config.bias is None else config.bias
    if expected and "fc.bias" not in found.shapes:
        found.fail(
            "fc.bias",
            "its config.json does not say that there is none, and the official code would take a random one. "
            'If the head was trained without, write "bias": false there.',
        )
    return found.flag("fc.bias", "bias", config.bias)
