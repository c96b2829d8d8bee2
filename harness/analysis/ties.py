"""Ties: the verdict on an arm from those on its generations; whether its ties are too many for rounding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from harness.analysis.metrics import ratio
from harness.analysis.stats import clopper_pearson
from harness.store.columns import VERDICTS, Columns, Counts, Records
from harness.store.records import NullReplay, VerdictKind

_SEVERITY: tuple[VerdictKind, ...] = (
    "unpaired",
    "identical",
    "tie",
    "stop-rule",
    "unexplained",
    "lossy",
    "forced",
    "broken",
)
"""From the best to the worst."""


@dataclass(frozen=True, kw_only=True)
class Ties:
    """First differences that rounding explains, beside the null: vanilla's own tokens in other shapes.

    rate and null_rate: per token; null_ci: Clopper-Pearson, 95 %. num_compared: tokens up to a difference.
    excessive: the rate is above the null's, and chance does not explain it: of the ties of both, the arm has
    more than its share of their tokens (the interval of that share, 95 %; Przyborowski and Wilenski 1940).
    The protocol's letter, a rate above `null_ci`, leaves out what chance does to the arm's own rate: of right
    arms it calls one in four broken where the null was replayed over many more tokens than were compared.
    """

    num_ties: int
    num_compared: int
    rate: float
    null_rate: float
    null_ci: tuple[float, float]
    excessive: bool


def ties(records: Records, nulls: Sequence[NullReplay]) -> Ties:
    """Count ties once a place: repeats of the same prompt are no new evidence."""
    columns = Columns.of(records)
    severity = _severities(columns)
    judged = np.flatnonzero(severity > _SEVERITY.index("unpaired"))
    # The worst generation of each place, the first of equals.
    order = judged[np.lexsort((judged, -severity[judged], columns.places[judged]))]
    worst = order[np.unique(columns.places[order], return_index=True)[1]]
    position = columns.position[worst]
    num_ties = int((severity[worst] == _SEVERITY.index("tie")).sum())
    num_compared = int(np.where(position < 0, columns.num_tokens[worst], position + 1).sum())
    differing, replayed = sum(null.num_differing for null in nulls), sum(null.num_tokens for null in nulls)
    return Ties(
        num_ties=num_ties,
        num_compared=num_compared,
        rate=ratio(num_ties, num_compared),
        null_rate=ratio(differing, replayed),
        null_ci=clopper_pearson(differing, replayed),
        excessive=clopper_pearson(num_ties, num_ties + differing)[0] * (num_compared + replayed)
        > num_compared,
    )


def row_verdict(records: Records, nulls: Sequence[NullReplay]) -> VerdictKind | None:
    """The verdict on an arm: its worst record's, and `broken` where ties are too many to be rounding.

    `unpaired` only where nothing could be compared. None where nothing was judged.
    """
    columns = Columns.of(records)
    severity = _severities(columns)
    if not (severity >= 0).any():
        return None
    if ties(columns, nulls).excessive:
        return "broken"
    return _SEVERITY[int(severity.max())]


def _severities(columns: Columns) -> Counts:
    """Index into `_SEVERITY` of each generation's verdict, -1 where it has none."""
    ranks = np.array([*map(_SEVERITY.index, VERDICTS), -1], np.int32)
    return ranks[columns.verdict]
