"""Quantities: the numbers of one generation. A new one is a field here; records, files and columns follow.

A *round* is one target forward over the pending token and the draft. Prefill is not a round and emits one
token. All `_ns` are nanoseconds of a monotonic clock, and 0 in an untimed run.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

_ROUND_COUNT = {"per": "round", "unit": "count"}
_ROUND_TIME = {"per": "round", "unit": "ns"}
_TIME = {"per": "generation", "unit": "ns"}
_METERED = {"per": "generation", "unit": "metered"}
_BURST_COUNT = {"per": "burst", "unit": "count"}
_BURST_TIME = {"per": "burst", "unit": "ns"}


@dataclass(frozen=True, kw_only=True)
class Quantities:
    """What is counted and timed of one generation."""

    drafted: list[int] = field(default_factory=list, metadata=_ROUND_COUNT)
    """Nodes of the draft."""
    depth: list[int] = field(default_factory=list, metadata=_ROUND_COUNT)
    """The deepest level of the draft; equal to `drafted` for a chain."""
    accepted: list[int] = field(default_factory=list, metadata=_ROUND_COUNT)
    """Drafted tokens that were kept, before trimming at the end token and the cap."""
    emitted: list[int] = field(default_factory=list, metadata=_ROUND_COUNT)
    """Accepted tokens plus one, after trimming."""
    riders: list[int] = field(default_factory=list, metadata=_ROUND_COUNT)
    """Tokens that shared the forward without being part of the draft."""
    forced: list[int] = field(default_factory=list, metadata=_ROUND_COUNT)
    """1 where the token of the round was given and not drawn, as at the end of a thinking budget, else 0."""
    draft_ns: list[int] = field(default_factory=list, metadata=_ROUND_TIME)
    """Proposing the draft, and learning from the outcome of the round before."""
    verify_ns: list[int] = field(default_factory=list, metadata=_ROUND_TIME)
    """The target's forward."""
    accept_ns: list[int] = field(default_factory=list, metadata=_ROUND_TIME)
    """Acceptance, and reading its result on the host."""
    commit_ns: list[int] = field(default_factory=list, metadata=_ROUND_TIME)
    """Moving the accepted rows of the cache."""
    prefill_ns: int = field(default=0, metadata=_TIME)
    """Feeding the prompt to the target and to the drafter."""
    total_ns: int = field(default=0, metadata=_TIME)
    """The generation's share of the time of its batch, so that shares add up."""
    latency_ns: int = field(default=0, metadata=_TIME)
    """From entering the batch to the last token, waiting for others included."""
    first_token_ns: int | None = field(default=None, metadata=_METERED)
    """From entering the batch until the first token is known and the drafter has read the prompt: the end of
    the prefill. None where the clock does not count or the loop is not ours."""
    peak_memory_bytes: int | None = field(default=None, metadata=_METERED)
    """The most memory that was held until the end of the call."""
    energy_mj: int | None = field(default=None, metadata=_METERED)
    """Millijoules that the device used."""
    arrived: list[int] = field(default_factory=list, metadata=_BURST_COUNT)
    """Tokens of each burst, which is what one event of an engine's stream brings; none where nothing is
    streamed. Of an engine that sends every step at once, the first burst is the prefill and each other one a
    round."""
    arrival_ns: list[int] = field(default_factory=list, metadata=_BURST_TIME)
    """When each burst arrived, after the request was due."""
    engine_rounds: int | None = field(default=None, metadata=_METERED)
    """Rounds with a draft, as the engine counts them. What an engine counts for a whole call, and not for
    each of its requests, stands in the call's first generation, and the others have 0."""
    engine_drafted: int | None = field(default=None, metadata=_METERED)
    """Drafted tokens, as the engine counts them."""
    engine_accepted: int | None = field(default=None, metadata=_METERED)
    """Drafted tokens that were kept, as the engine counts them."""
    num_agreeing: int | None = field(default=None, metadata=_METERED)
    """Output tokens that plain decoding would have drawn there, behind the same tokens. This and the
    next two are only judged where output may differ from vanilla's."""
    surprisal_unat: int | None = field(default=None, metadata=_METERED)
    """Minus the log-likelihood of the output under the target, at temperature 1 without filters, in
    millionths of a nat."""
    score_ppm: int | None = field(default=None, metadata=_METERED)
    """The task's score of the answer, in millionths; None where the task has none."""

    def quantities(self, **measured: int | None) -> dict[str, Any]:
        """All quantities by name; `measured` replaces some of them."""
        return {**{one.name: getattr(self, one.name) for one in dataclasses.fields(Quantities)}, **measured}


def _names(kind: dict[str, str]) -> tuple[str, ...]:
    """The quantities of one kind, in the order of their declaration."""
    return tuple(one.name for one in dataclasses.fields(Quantities) if one.metadata == kind)


ROUND_COUNTS = _names(_ROUND_COUNT)
ROUND_TIMES = _names(_ROUND_TIME)
TIMES = _names(_TIME)
METERED = _names(_METERED)
"""One number per generation, None where the machine or the engine cannot measure it."""
BURST_COUNTS = _names(_BURST_COUNT)
BURST_TIMES = _names(_BURST_TIME)
