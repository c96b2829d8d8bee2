"""HeadNetwork: what the rounds of a drafter use of a head, whatever its layers are.

Shapes: B sequences, n rows, C cache slots, H hidden size, F width of the target's features, V draft
vocabulary.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from harness.drafting.drafter import TargetView
from harness.runtime.cache import SlotCache


class HeadNetwork(nn.Module, ABC):
    """A head that reads a state and the token after it, and gives the state one token later."""

    @property
    @abstractmethod
    def feature_size(self) -> int:
        """F, the width of the target's features of one token."""

    @property
    @abstractmethod
    def dtype(self) -> torch.dtype:
        """The type of states and features."""

    @abstractmethod
    def project(self, features: Tensor) -> Tensor:
        """First states [B, n, H] from the target's features [B, n, F]."""

    @abstractmethod
    def advance(
        self,
        tokens: Tensor,
        states: Tensor,
        positions: Tensor,
        mask: Tensor,
        cache: SlotCache,
        target: TargetView,
    ) -> Tensor:
        """States [B, n, H] one token later.

        Args:
            tokens: [B, n] int64, the token after each state's.
            states: [B, n, H].
            positions: [B, n] int64, the states' own.
            mask: [B, 1, n, C] bool, the slots that each row sees.
            cache: the head's own, aimed at these rows.
            target: gives the embeddings, where the head has none.
        """

    @abstractmethod
    def logits(self, states: Tensor, target: TargetView) -> Tensor:
        """Logits [..., V] over the draft vocabulary, after `states` [..., H]."""

    @abstractmethod
    def target_ids(self, draft_ids: Tensor) -> Tensor:
        """The target's token ids of draft ids."""
