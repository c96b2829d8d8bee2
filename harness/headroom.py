"""Headroom and prediction: what an arm's ledger and a cost table say of seconds that were not spent.

Every function takes the records of one arm. A number that they cannot tell is nan.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.cost_table import CostTable, DraftingCost, identity
from harness.records import GenerationRecord, RunManifest

Records = Sequence[GenerationRecord]
Floats = NDArray[np.float64]
_NOT_SETTINGS = ("scope", "card")
"""Of a manifest's arm: what is not its configuration."""


@dataclass(frozen=True, kw_only=True)
class Headroom:
    """Tokens per second of an arm, had something been otherwise, and as a cost table alone predicts them.

    free_drafter: drafting took no time. oracle_length: every round drafted just what it kept; drafting took
    as long as it did. both: the two together. predicted: prefill as measured, every round by the table.
    """

    free_drafter: float
    oracle_length: float
    both: float
    predicted: float


def headroom(
    records: Records, table: CostTable | None, method: str, settings: Mapping[str, Any] | None
) -> Headroom:
    """Of an arm's timed records. settings: the arm's configuration, to find its drafting in the table."""
    drafting = table.drafting(method, settings) if table and settings is not None else None

    def rate(seconds: Callable[[GenerationRecord], float]) -> float:
        total = sum(map(seconds, records))
        return sum(len(r.output_ids) for r in records) / total if total > 0 else math.nan

    return Headroom(
        free_drafter=rate(lambda r: (r.total_ns - sum(r.draft_ns)) * 1e-9),
        oracle_length=rate(lambda r: r.total_ns * 1e-9 - _saved(r, table)),
        both=rate(lambda r: (r.total_ns - sum(r.draft_ns)) * 1e-9 - _saved(r, table)),
        predicted=rate(lambda r: predicted_seconds(r, table, drafting)),
    )


def contexts(record: GenerationRecord) -> Floats:
    """Tokens in the cache before each round: the prompt and the output but for the pending token."""
    before = np.concatenate([[0], np.cumsum(record.emitted)[:-1]]) if record.emitted else np.zeros(0)
    return np.asarray(record.num_prompt_tokens + before, float)


def predicted_seconds(
    record: GenerationRecord, table: CostTable | None, drafting: DraftingCost | None
) -> float:
    """A generation's share of its batch's time: the prefill as measured, the rounds by the table.

    nan without a table, outside of it, and where an arm drafts and its drafter is not in it.
    """
    drafts = any(record.drafted)
    if table is None or (drafts and drafting is None):
        return math.nan
    places: dict[str, Any] = {"batch": float(record.batch_size), "context": contexts(record)}
    tokens = 1.0 + np.asarray(record.drafted, float)
    if not table.forward.covers(**places, tokens=tokens):
        return math.nan
    seconds = table.step_seconds(**places, tokens=tokens).sum()
    if drafts:
        assert drafting is not None
        if not drafting.round.covers(**places):
            return math.nan
        seconds += drafting.round.at(**places).sum()
    return float(record.prefill_ns * 1e-9 + seconds / record.batch_size)


def _saved(record: GenerationRecord, table: CostTable | None) -> float:
    """Seconds of verifying that a generation would have spared by drafting only what was kept.

    The measured time is scaled by the table's ratio, so that a table that is off as a whole does no harm.
    """
    if table is None:
        return math.nan
    places: dict[str, Any] = {"batch": float(record.batch_size), "context": contexts(record)}
    drafted, kept = (1.0 + np.asarray(n, float) for n in (record.drafted, record.accepted))
    if not table.forward.covers(**places, tokens=drafted):
        return math.nan
    ratio = table.seconds(**places, tokens=kept) / table.seconds(**places, tokens=drafted)
    return float((np.asarray(record.verify_ns) * 1e-9 * (1 - ratio)).sum())


def table_of(manifest: RunManifest, tables: Sequence[CostTable]) -> CostTable | None:
    """The table that was measured on what a run ran on; None where there is none."""
    if not tables:
        return None
    wanted = run_identity(manifest)
    return next((table for table in tables if table.identity == wanted), None)


def run_identity(manifest: RunManifest) -> dict[str, dict[str, Any]]:
    """What a table must have been measured on to speak of a run; see `cost_table.identity`."""
    facts = manifest.provenance
    return identity(manifest.target, facts.get("device") or {}, facts.get("packages") or {})


def settings_of(manifest: RunManifest, method: str) -> dict[str, Any]:
    """An arm's configuration, as its manifest has it."""
    return {k: v for k, v in manifest.arms.get(method, {}).items() if k not in _NOT_SETTINGS}
