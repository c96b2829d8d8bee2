"""Headroom and prediction: what an arm's ledger and a cost table say of seconds that were not spent.

Every function takes the records of one arm, as records or as columns. A number that they cannot tell is nan.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.costs.table import CostTable, DraftingCost, identity
from harness.store.columns import Columns, Records
from harness.store.records import RunManifest

Floats = NDArray[np.float64]
_NOT_SETTINGS = ("scope", "card")
"""Keys of a manifest's arm that are not part of its configuration."""


@dataclass(frozen=True, kw_only=True)
class Headroom:
    """Tokens per second that an arm would reach under other assumptions, or by a cost table alone."""

    free_drafter: float
    """Drafting takes no time."""
    oracle_length: float
    """Every round drafts exactly the tokens that it keeps; drafting takes as long as it did."""
    both: float
    """The two assumptions together."""
    predicted: float
    """Prefill takes as long as it did, and every round as long as the table says."""


def headroom(
    records: Records, table: CostTable | None, method: str, settings: Mapping[str, Any] | None
) -> Headroom:
    """Headroom of an arm's timed records.

    settings: the arm's configuration, by which the table is searched for its drafter.
    """
    columns = Columns.of(records)
    drafting = table.drafting(method, settings) if table and settings is not None else None
    num_tokens = float(columns.num_tokens.sum())
    spent, drafts = columns.total_ns.sum() * 1e-9, columns.draft_ns.sum() * 1e-9
    saved = _saved_seconds(columns, table)

    def rate(seconds: float) -> float:
        return num_tokens / float(seconds) if seconds > 0 else math.nan

    return Headroom(
        free_drafter=rate(spent - drafts),
        oracle_length=rate(spent - saved),
        both=rate(spent - drafts - saved),
        predicted=rate(_predicted_seconds(columns, table, drafting)),
    )


def contexts(records: Records) -> Floats:
    """Tokens in the cache before each round: the prompt and the output but for the pending token."""
    columns = Columns.of(records)
    return np.asarray(columns.of_rounds(columns.num_prompt_tokens) + columns.begins - 1, float)


def _predicted_seconds(columns: Columns, table: CostTable | None, drafting: DraftingCost | None) -> float:
    """The generations' shares of their batches' time: the prefill as measured, the rounds by the table.

    nan without a table, outside of it, and where an arm drafts and its drafter is not in it.
    """
    drafts = columns.rounds_sum(columns.drafted) > 0
    if table is None or (drafts.any() and drafting is None):
        return math.nan
    batch, context = columns.of_rounds(columns.batch_size).astype(float), contexts(columns)
    tokens = 1.0 + columns.drafted
    if not table.forward.covers(batch=batch, context=context, tokens=tokens):
        return math.nan
    seconds = table.step_seconds(batch, context, tokens)
    if drafting is not None:
        drafted = columns.of_rounds(drafts)
        places = {"batch": batch[drafted], "context": context[drafted]}
        if not drafting.round.covers(**places):
            return math.nan
        seconds[drafted] += drafting.round.at(**places)
    return float(columns.prefill_ns.sum() * 1e-9 + (seconds / batch).sum())


def _saved_seconds(columns: Columns, table: CostTable | None) -> float:
    """Seconds of verifying that would have been spared by drafting only what was kept.

    The measured time is scaled by the table's ratio, so that a table that is off as a whole does no harm.
    """
    if table is None:
        return math.nan
    batch, context = columns.of_rounds(columns.batch_size).astype(float), contexts(columns)
    drafted, kept = 1.0 + columns.drafted, 1.0 + columns.accepted
    if not table.forward.covers(batch=batch, context=context, tokens=drafted):
        return math.nan
    ratio = table.seconds(batch, context, kept) / table.seconds(batch, context, drafted)
    return float((columns.round_verify_ns * 1e-9 * (1 - ratio)).sum())


def table_of(manifest: RunManifest, tables: Sequence[CostTable]) -> CostTable | None:
    """The table that was measured on what a run ran on; None where there is none."""
    if not tables:
        return None
    wanted = run_identity(manifest)
    return next((table for table in tables if table.identity == wanted), None)


def run_identity(manifest: RunManifest) -> dict[str, dict[str, Any]]:
    """What a table must have been measured on to speak of a run; see `costs.table.identity`."""
    facts = manifest.provenance
    return identity(manifest.target, facts.get("device") or {}, facts.get("packages") or {})


def settings_of(manifest: RunManifest, method: str) -> dict[str, Any]:
    """An arm's configuration, as its manifest has it."""
    return {k: v for k, v in manifest.arms.get(method, {}).items() if k not in _NOT_SETTINGS}
