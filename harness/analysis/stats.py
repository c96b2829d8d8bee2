"""Statistics: confidence intervals over conversations, and what may be called a difference.

The unit that is resampled (the cluster) is a conversation with all its turns, samples and repeats: what lies
inside one is not independent. Every arm gets the same resampled conversations: differences are paired.
Shapes: C clusters, R resamples.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache, reduce
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from harness.store.columns import Columns

Floats = NDArray[np.float64]
Difference = Literal["faster", "slower", "not distinguishable"]

NUM_RESAMPLES = 2000
CONFIDENCE = 0.95
FEW_CLUSTERS = 12
"""Below this a percentile interval is too narrow to be trusted: its row is marked `indicative`."""


class Interval(NamedTuple):
    """A number and the ends of its 95 % confidence interval; nan ends where there is none (one cluster)."""

    value: float
    low: float
    high: float

    @property
    def half_width(self) -> float:
        """Half the interval's length."""
        return (self.high - self.low) / 2

    @property
    def ends(self) -> tuple[float, float] | None:
        """(low, high), None where there is no interval."""
        return None if np.isnan(self.low) else (self.low, self.high)


class Totals(NamedTuple):
    """Per cluster [C] the two sums that a rate is the quotient of: tokens and seconds, tokens and rounds."""

    amount: Floats
    cost: Floats


@lru_cache(maxsize=4)
def resample(num_clusters: int, num_resamples: int = NUM_RESAMPLES, seed: int = 0) -> Floats:
    """How often each cluster is drawn [R, C]; the same for the same arguments, and not to be written to."""
    even = np.full(num_clusters, 1.0 / num_clusters)
    return np.random.default_rng(seed).multinomial(num_clusters, even, size=num_resamples).astype(np.float64)


def bootstrap(
    over: Sequence[Totals], under: Sequence[Totals] = (), num_resamples: int = NUM_RESAMPLES, seed: int = 0
) -> Interval:
    """The product of the rates `over` divided by the product of the rates `under`, with its interval.

    A rate is the sum of amounts over the sum of costs. One rate over none is that rate itself, one over one a
    speedup, two over two compares two arms by their speedups. All totals have the same clusters in one order.
    Percentile interval of the cluster bootstrap (Davison and Hinkley 1997, section 5.3).
    """
    num_clusters = len(over[0].amount)
    assert all(len(totals.amount) == num_clusters for totals in (*over, *under)), "clusters are not aligned"
    if num_clusters == 0:
        return Interval(np.nan, np.nan, np.nan)
    value = float(_quotient(np.ones((1, num_clusters)), over, under)[0])
    if num_clusters == 1:
        return Interval(value, np.nan, np.nan)
    drawn = _quotient(resample(num_clusters, num_resamples, seed), over, under)
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.nanpercentile(drawn, [tail, 100 - tail])
    return Interval(value, float(low), float(high))


def _quotient(weights: Floats, over: Sequence[Totals], under: Sequence[Totals]) -> Floats:
    result = np.ones(len(weights))
    # A resample may hold only clusters without any cost (no rounds); it says nothing and is left out.
    with np.errstate(divide="ignore", invalid="ignore"):
        for totals in over:
            result = result * ((weights @ totals.amount) / (weights @ totals.cost))
        for totals in under:
            result = result / ((weights @ totals.amount) / (weights @ totals.cost))
    result[~np.isfinite(result)] = np.nan
    return result


def compare(over: Sequence[Totals], under: Sequence[Totals], floor: float) -> tuple[Interval, Difference]:
    """Ratio of two arms (see `bootstrap`) and what may be said of it.

    floor: the A/A floor, the half-width of the interval between vanilla's own repeats; nan where vanilla ran
    once.
    """
    interval = bootstrap(over, under)
    return interval, difference(interval, floor)


def difference(interval: Interval, floor: float) -> Difference:
    """A ratio is not distinguishable from 1 if it lies inside the floor or its interval holds 1."""
    inside = abs(interval.value - 1) <= floor  # False for a nan floor: then the interval alone decides.
    if inside or not (interval.low > 1 or interval.high < 1):
        return "not distinguishable"
    return "faster" if interval.value > 1 else "slower"


def geometric_mean(ratios: Floats) -> float:
    """Geometric mean of positive numbers [C]; nan if there are none."""
    return float(np.exp(np.log(ratios).mean())) if len(ratios) else float("nan")


def clopper_pearson(num_hits: int, num_trials: int) -> tuple[float, float]:
    """Exact 95 % interval of a proportion (Clopper and Pearson 1934); (0, 1) without a trial."""
    if num_trials == 0:
        return 0.0, 1.0
    places = np.arange(1, num_hits + 1)
    log_choose = np.concatenate([[0.0], np.cumsum(np.log((num_trials - places + 1) / places))])
    tail = (1 - CONFIDENCE) / 2

    def at_most(hits: int, share: float) -> float:
        """Probability of `hits` or fewer."""
        counts = np.arange(hits + 1)
        logs = log_choose[: hits + 1] + counts * np.log(share) + (num_trials - counts) * np.log1p(-share)
        return float(np.exp(logs).sum())

    def share_where(hits: int, probability: float) -> float:
        """The share at which `at_most` falls to `probability`, by bisection."""
        low, high = 0.0, 1.0
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if at_most(hits, middle) > probability else (low, middle)
        return (low + high) / 2

    lower = share_where(num_hits - 1, 1 - tail) if num_hits else 0.0
    upper = share_where(num_hits, tail) if num_hits < num_trials else 1.0
    return lower, upper


def matched(*parts: Columns) -> list[Columns]:
    """The generations at the places that every part has."""
    common = reduce(np.intersect1d, [part.places for part in parts])
    return [part.subset(np.isin(part.places, common)) for part in parts]


def seconds_of(records: Columns) -> Totals:
    """Tokens and seconds of each conversation, by name."""
    tokens, spent_ns = records.clusters(records.num_tokens, records.total_ns)
    return Totals(tokens, spent_ns * 1e-9)


def tau_of(records: Columns) -> Interval:
    """Tokens per round, with the interval over conversations."""
    return bootstrap([Totals(*records.clusters(records.rounds_sum(records.emitted), records.num_rounds))])
