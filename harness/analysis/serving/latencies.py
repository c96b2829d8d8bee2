"""What a user of a server observes: latencies by percentile, goodput, and rounds as seen from outside."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from harness.analysis.metrics import ratio
from harness.store.columns import Columns

_PERCENTILES = (50, 90, 99)


class Percentiles(NamedTuple):
    """Three percentiles of seconds; nan where nothing is known."""

    p50: float = math.nan
    p90: float = math.nan
    p99: float = math.nan


_UNKNOWN = Percentiles()


@dataclass(frozen=True, kw_only=True)
class Serving:
    """What is known of an arm whose answers were streamed."""

    first_token: Percentiles = _UNKNOWN
    """From when a request was due to its first token."""
    burst_gap: Percentiles = _UNKNOWN
    """Between one burst of a stream and the next, over all bursts; elsewhere called inter-token latency."""
    per_token: Percentiles = _UNKNOWN
    """Per request, its seconds behind the first burst over its tokens behind the first burst."""
    request: Percentiles = _UNKNOWN
    """From when a request was due to its last token."""
    user_tokens_per_s: float = math.nan
    """Tokens per second that one user sees behind the first token: the inverse of `per_token.p50`."""
    tau_of_bursts: float = math.nan
    """Tokens per burst behind the first one. Equals tau where an engine sends each round at once."""
    tau_of_counters: float = math.nan
    """1 + accepted / rounds with a draft, of the engine's own counters: what vLLM prints."""
    engine_rounds: int | None = None
    engine_drafted: int | None = None
    engine_accepted: int | None = None
    goodput: float = math.nan
    """Requests per second that kept the limits of the run; nan without limits."""
    good_share: float = math.nan


def serving(records: Columns, limits: Mapping[str, Any]) -> Serving | None:
    """What the streams of one arm tell; None where nothing was streamed.

    limits: `first_token_s`, `per_token_s` and `request_s` of the engine's `goodput`, None or missing where
    there is none.
    """
    if not len(records.burst_tokens):
        return None
    streamed = records.subset(records.num_bursts > 0)
    timed = bool(streamed.timed.all())
    counts = _counters(streamed)
    bursts = streamed.num_bursts.astype(np.int64)
    behind = int(streamed.burst_tokens.sum() - _firsts(streamed.burst_tokens, bursts).sum())
    found: dict[str, Any] = {"tau_of_bursts": ratio(behind, int((bursts - 1).sum())), **counts}
    return Serving(**found, **_latencies(streamed, bursts, limits)) if timed else Serving(**found)


def _latencies(records: Columns, bursts: NDArray[np.int64], limits: Mapping[str, Any]) -> dict[str, Any]:
    first = records.first_token_ns * 1e-9
    request = records.latency_ns * 1e-9
    owner = np.repeat(np.arange(len(records)), bursts)
    gaps = np.diff(records.burst_ns)[np.diff(owner) == 0] * 1e-9
    behind = np.bincount(owner, records.burst_tokens) - _firsts(records.burst_tokens, bursts)
    longer = behind > 0
    per_token = (request - first)[longer] / behind[longer]
    middle = _percentiles(per_token)
    return {
        "first_token": _percentiles(first),
        "burst_gap": _percentiles(gaps),
        "per_token": middle,
        "request": _percentiles(request),
        "user_tokens_per_s": 1 / middle.p50 if middle.p50 else math.nan,
        **_goodput(records, first, request, behind, limits),
    }


def _goodput(
    records: Columns,
    first: NDArray[Any],
    request: NDArray[Any],
    behind: NDArray[Any],
    limits: Mapping[str, Any],
) -> dict[str, float]:
    asked = {name: limits.get(name) for name in ("first_token_s", "per_token_s", "request_s")}
    if all(value is None for value in asked.values()):
        return {}
    per_token = np.divide(request - first, behind, out=np.zeros(len(behind)), where=behind > 0)
    good = np.ones(len(records), bool)
    for values, name in ((first, "first_token_s"), (per_token, "per_token_s"), (request, "request_s")):
        if (most := asked[name]) is not None:
            good &= values <= float(most)
    seconds = float(records.total_ns.sum()) * 1e-9
    return {"goodput": ratio(float(good.sum()), seconds), "good_share": float(good.mean())}


def _counters(records: Columns) -> dict[str, Any]:
    """The engine's own counters; nothing where it has none."""
    known = records.engine_drafted >= 0
    if not known.any():
        return {}
    rounds, drafted, accepted = (
        int(values[known & (values >= 0)].sum())
        for values in (records.engine_rounds, records.engine_drafted, records.engine_accepted)
    )
    return {
        "engine_rounds": rounds or None,
        "engine_drafted": drafted,
        "engine_accepted": accepted,
        "tau_of_counters": 1 + accepted / rounds if rounds else math.nan,
    }


def _firsts(values: NDArray[Any], lengths: NDArray[np.int64]) -> NDArray[Any]:
    """The first value of each list; no list is empty."""
    firsts: NDArray[Any] = values[np.cumsum(lengths) - lengths]
    return firsts


def _percentiles(seconds: NDArray[Any]) -> Percentiles:
    if not len(seconds):
        return _UNKNOWN
    return Percentiles(*(float(one) for one in np.percentile(seconds, _PERCENTILES)))
