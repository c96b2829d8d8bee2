"""HeadDrafter: the rounds of a drafter that grows trees with a draft head, level by level."""

from __future__ import annotations

import torch
from typing_extensions import override

from harness.config import configurable
from harness.drafting.drafter import HiddenTap
from methods.shared.eagle.growth import Growth
from methods.shared.eagle.heads.network import HeadNetwork
from methods.shared.eagle.pair_drafter import PairDrafter
from methods.shared.eagle.steps import HeadSteps


@configurable
class HeadDrafter(PairDrafter):
    """Base of drafters with a head; a subclass gives the head to `draft_with` when it is bound."""

    def draft_with(self, network: HeadNetwork, taps: tuple[HiddenTap, ...]) -> None:
        """Draft with this head from now on; it reads the target's states at `taps`."""
        self._target.prepare(network)
        self._head_steps = HeadSteps(self._target, network)
        self.use(network, taps, self._head_steps)

    @property
    @override
    def feature_shape(self) -> tuple[int, torch.dtype]:
        network = self._head_steps.network
        return network.feature_size, network.dtype

    @override
    def new_growth(self, row: int | None = None) -> Growth:
        return Growth(self._head_steps, row)
