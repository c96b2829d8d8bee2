"""Headroom: what a drafter that knew how much of its draft is kept would spare."""

from __future__ import annotations

import math
from collections.abc import Sequence

from harness.records import GenerationRecord


def oracle_saving_ns(
    records: Sequence[GenerationRecord], vanilla: Sequence[GenerationRecord], costs: Sequence[int]
) -> float:
    """Nanoseconds of verification that an oracle draft length would have spared `records`.

    The oracle has every round verify only the tokens that it kept, a chain of them; drafting takes as long
    as it did. Such a round costs vanilla's mean forward, of the same prompts in the same run, times what the
    cost table says of that many tokens over none. What was never drafted might have been kept too, so this
    is no more than the ledger can prove.

    costs: nanoseconds of a forward over n drafted tokens, for n = 0, 1, ... (`Probe.verify_ns`); one that
    keeps more tokens than the table has costs as much as its last entry.
    Returns nan without a table, or where there are no rounds on either side; never less than 0.
    """
    kept = [length for record in records for length in record.accepted]
    forwards = [span for record in vanilla for span in record.verify_ns]
    if not costs or not kept or not forwards or not any(forwards):
        return math.nan
    # A draft may be padded to a cheaper width (`cost.cheapest_widths`).
    least = [min(costs[width:]) for width in range(len(costs))]
    single = sum(forwards) / len(forwards)
    needed = sum(single * least[min(length, len(least) - 1)] / costs[0] for length in kept)
    return max(sum(sum(record.verify_ns) for record in records) - needed, 0.0)
