"""ClockedCosts: what forwards cost, for drafters and tree policies that weigh it; see `StepCosts`."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from numpy.typing import ArrayLike

from harness.drafting.step_costs import TargetCosts
from harness.system.clock import synchronize
from harness.system.processes import agreed

_REPEATS = 5
"""Forwards over which the fastest is taken; disturbances only ever make one slower."""


@dataclass(frozen=True, kw_only=True)
class ClockedCosts:
    """Measured costs of the target, and a clock for the forwards of drafters."""

    target: TargetCosts
    """Costs that were measured before, the same in all processes of the run."""
    device: torch.device
    """The device that a forward is waited for on."""

    def curve(self, batch: float, context: float) -> ArrayLike:
        """Seconds of the target's forward over 1, 2, ... tokens; see `StepCosts`."""
        return self.target.curve(batch, context)

    @torch.no_grad()
    def seconds(self, call: Callable[[int], None], most: int) -> Sequence[float]:
        """Seconds of `call(1)`, `call(2)`, ... `call(most)`: the fastest of a few each, which take turns."""
        best = [math.inf] * most
        for _ in range(_REPEATS):
            for place in range(most):
                synchronize(self.device)
                begin = time.perf_counter()
                call(place + 1)
                synchronize(self.device)
                best[place] = min(best[place], time.perf_counter() - begin)
        return agreed(best)
