"""Ties: the verdict on an arm from those on its generations; whether its ties are too many for rounding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from harness import metrics
from harness.records import GenerationRecord, NullReplay, VerdictKind
from harness.stats import clopper_pearson

_SEVERITY: tuple[VerdictKind, ...] = (
    "unpaired",
    "identical",
    "tie",
    "stop-rule",
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


def ties(records: metrics.Records, nulls: Sequence[NullReplay]) -> Ties:
    """Count ties once a place: repeats of the same prompt are no new evidence."""
    worst: dict[metrics.Place, GenerationRecord] = {}
    for record in records:
        if record.verdict and record.verdict.kind != "unpaired":
            known = worst.get(metrics.place(record))
            if known is None or _severity(record) > _severity(known):
                worst[metrics.place(record)] = record
    num_ties = num_compared = 0
    for record in worst.values():
        assert record.verdict is not None
        position = record.verdict.position
        num_ties += record.verdict.kind == "tie"
        num_compared += len(record.output_ids) if position is None else position + 1
    differing, replayed = sum(null.num_differing for null in nulls), sum(null.num_tokens for null in nulls)
    return Ties(
        num_ties=num_ties,
        num_compared=num_compared,
        rate=metrics.ratio(num_ties, num_compared),
        null_rate=metrics.ratio(differing, replayed),
        null_ci=clopper_pearson(differing, replayed),
        excessive=clopper_pearson(num_ties, num_ties + differing)[0] * (num_compared + replayed)
        > num_compared,
    )


def row_verdict(records: metrics.Records, nulls: Sequence[NullReplay]) -> VerdictKind | None:
    """The verdict on an arm: its worst record's, and `broken` where ties are too many to be rounding.

    `unpaired` only where nothing could be compared. None where nothing was judged.
    """
    judged = [r for r in records if r.verdict]
    if not judged:
        return None
    if ties(records, nulls).excessive:
        return "broken"
    return _SEVERITY[max(_severity(r) for r in judged)]


def _severity(record: GenerationRecord) -> int:
    assert record.verdict is not None
    return _SEVERITY.index(record.verdict.kind)
