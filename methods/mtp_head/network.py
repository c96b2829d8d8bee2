"""The network of a native multi-token-prediction head.

DeepSeek-V3 (arXiv 2412.19437, section 2.2): the target's last state and the embedding of the token after it
are normed, joined and projected, and pass one more block of the target's own class; a norm and the target's
LM head follow. The head is called again on its own output for each further token.

Shapes: B sequences, n rows, C cache slots, H hidden size, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from typing_extensions import override

from harness.drafting.drafter import OwnParts, TargetView
from harness.runtime.cache import SlotCache
from methods.shared.eagle.heads.network import HeadNetwork

State = Literal["normed", "raw"]
"""A state behind a norm, or the residual stream before it."""


@dataclass(frozen=True, kw_only=True)
class Conventions:
    """What the shapes of a head's tensors do not tell."""

    hidden_first: bool
    """Whether the projection reads [state; embedding] instead of [embedding; state]."""
    feed_back: State
    """The state of the head that its next call reads: behind the head's last norm, or before it."""


class MtpNetwork(HeadNetwork):
    """A head in the names of DeepSeek-V3; its `block` has those of the target's blocks."""

    def __init__(self, parts: OwnParts, conventions: Conventions) -> None:
        super().__init__()
        self._parts, self.conventions = parts, conventions
        size, eps = parts.config.hidden_size, parts.config.rms_norm_eps
        self.enorm, self.hnorm, self.norm = (parts.norm(size, eps=eps) for _ in range(3))
        self.eh_proj = nn.Linear(2 * size, size, bias=False)
        self.block = parts.block(parts.config, 0)

    @property
    @override
    def feature_size(self) -> int:
        return int(self._parts.config.hidden_size)

    @property
    @override
    def dtype(self) -> torch.dtype:
        return next(self.hnorm.parameters()).dtype

    @override
    def project(self, features: Tensor) -> Tensor:
        return features

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
        read = self.enorm(target.embed(tokens).to(states.dtype)), self.hnorm(states)
        joined = self.eh_proj(torch.cat(read[::-1] if self.conventions.hidden_first else read, dim=-1))
        output = self.block(
            joined,
            attention_mask=self._parts.as_mask(mask),
            position_ids=positions,
            position_embeddings=self._parts.rotary(joined, positions),
            past_key_values=cache,
            use_cache=True,
        )
        # Depending on the model, a block returns a tensor or a tuple.
        state: Tensor = output if isinstance(output, Tensor) else output[0]
        return self._normed(state) if self.conventions.feed_back == "normed" else state

    @override
    def logits(self, states: Tensor, target: TargetView) -> Tensor:
        return target.lm_head(states if self.conventions.feed_back == "normed" else self._normed(states))

    @override
    def target_ids(self, draft_ids: Tensor) -> Tensor:
        return draft_ids

    def place(self, device: torch.device, dtype: torch.dtype) -> MtpNetwork:
        """Prepare for drafting on `device`. Only parameters take `dtype`; a router's bias stays float32."""
        for parameter in self.parameters():
            parameter.data = parameter.data.to(dtype)
        self.to(device)
        return self.eval().requires_grad_(False)

    def _normed(self, states: Tensor) -> Tensor:
        normed: Tensor = self.norm(states)
        return normed
