"""An arm's output: the verdict on it, whether rounding explains its number of ties, and how good it is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

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

    The written protocol calls ties excessive if their rate is above `null_ci`. That ignores the chance in the
    arm's own rate: it calls one in four correct arms broken where the null was replayed over many more tokens
    than were compared.
    """

    num_ties: int
    """First differences that rounding explains, or that nobody can explain."""
    num_compared: int
    """Tokens up to and including the first difference of each generation."""
    rate: float
    """Ties per compared token."""
    null_rate: float
    """Differences per token of the null."""
    null_ci: tuple[float, float]
    """Clopper-Pearson interval of `null_rate`, 95 %."""
    excessive: bool
    """Whether the arm has more of both ties than its share of both tokens, by more than chance explains.

    The test is the 95 % interval of that share (Przyborowski and Wilenski 1940).
    """


def ties(records: Records, nulls: Sequence[NullReplay]) -> Ties:
    """Count ties once per place, because repeats of the same prompt are no new evidence."""
    columns = Columns.of(records)
    severity = _severities(columns)
    judged = np.flatnonzero(severity > _SEVERITY.index("unpaired"))
    # The worst generation of each place, the first of equals.
    order = judged[np.lexsort((judged, -severity[judged], columns.places[judged]))]
    worst = order[np.unique(columns.places[order], return_index=True)[1]]
    position = columns.position[worst]
    num_ties = int(np.isin(severity[worst], [_SEVERITY.index("tie"), _SEVERITY.index("unexplained")]).sum())
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


@dataclass(frozen=True, kw_only=True)
class Quality:
    """How good outputs are that may differ from vanilla's."""

    agreement: float
    """Share of the tokens that plain decoding would have drawn behind the same tokens."""
    log_likelihood: float
    """Nats per token under the target, at temperature 1 without filters."""
    score: float
    """The task's score, averaged over the answers that it could tell; nan where none."""


def quality(records: Records) -> Quality | None:
    """The quality of outputs, pooled over their tokens; None unless every output was judged."""
    columns = Columns.of(records)
    agreeing, surprisal, scores = columns.num_agreeing, columns.surprisal_unat, columns.score_ppm
    if not len(columns) or (agreeing < 0).any() or (surprisal < 0).any():
        return None
    num_tokens = columns.num_tokens.sum()
    return Quality(
        agreement=ratio(agreeing.sum(), num_tokens),
        log_likelihood=-1e-6 * ratio(surprisal.sum(), num_tokens),
        score=1e-6 * _mean_known(scores),
    )


def _mean_known(values: NDArray[np.int64]) -> float:
    """The mean of the values that are not below 0, which stands for unknown ones; nan where there is none."""
    known = values[values >= 0]
    return float(known.mean()) if len(known) else math.nan
