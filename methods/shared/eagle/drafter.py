"""HeadDrafter: the rounds of a drafter that grows trees with a draft head, level by level."""

from __future__ import annotations

import torch
from typing_extensions import override

from harness.config import configurable
from harness.drafting.drafter import HiddenTap
from methods.shared.eagle.growth import Growth
from methods.shared.eagle.heads.base import DraftHead
from methods.shared.eagle.pair_drafter import PairDrafter
from methods.shared.eagle.steps import HeadSteps


@configurable
class HeadDrafter(PairDrafter):
    """Base of drafters with a `DraftHead`; a subclass gives the head to `draft_with` when it is bound."""

    def draft_with(self, network: DraftHead, taps: tuple[HiddenTap, ...]) -> None:
        """Draft with this head from now on; it reads the target's states at `taps`."""
        self.network = network
        self._target.prepare(network)
        self._head_steps = HeadSteps(self._target, network)
        self.use(network, taps, self._head_steps)

    @property
    @override
    def feature_shape(self) -> tuple[int, torch.dtype]:
        return self.network.shape.feature_size, self.network.fc.weight.dtype

    @override
    def new_growth(self, row: int | None = None) -> Growth:
        return Growth(self._head_steps, row)
