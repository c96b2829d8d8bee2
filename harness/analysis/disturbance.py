"""What the loads of blocks say about a row: who else used the machine, and for how much of its time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from harness.store.records import BlockLoad


def disturbance(loads: Sequence[BlockLoad]) -> dict[str, Any]:
    """The fields of `Row` about noise, from the loads of all blocks of its runs.

    All methods of a run share its blocks, and within a block they are interleaved: a disturbed block marks
    every row of the run. Blocks count by the seconds that they took. Without loads, which older versions did
    not record, nothing is known.
    """
    if not loads:
        return {}
    total_s = sum(load.wall_s for load in loads)
    known = [load for load in loads if load.others_share is not None]
    disturbed = [load for load in loads if load.causes]
    worst: dict[str, float] = {}
    for load in disturbed:
        for cause, share in load.causes.items():
            worst[cause] = max(worst.get(cause, 0.0), share)
    return {
        "others_share": _mean([(load.others_share or 0.0, load.wall_s) for load in known]),
        "disturbed_share": sum(load.wall_s for load in disturbed) / total_s if total_s else math.nan,
        "disturbances": worst,
    }


def _mean(weighted: Sequence[tuple[float, float]]) -> float:
    """The mean of values by their weights; nan without any."""
    weight = sum(one for _, one in weighted)
    return sum(value * one for value, one in weighted) / weight if weight else math.nan
