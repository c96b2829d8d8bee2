"""Replay: what other draft lengths and batches would have given, by ledgers and a cost table. Never measured.

What is assumed:
* A draft cut after k levels keeps min(accepted, k). The tokens it loses take further rounds, which accept as
  the recorded ones do.
* A chain cut so is verified as k tokens; its drafter is spared one call of its own model for every level
  cut, where it has one. Where the nodes of a tree hang is not in the ledger: it is cut by depth, but charged
  for all its nodes and all its drafting, so that its speedup is a lower bound. Its budget cannot be replayed.
* A batch is full all the time; its sequences accept as they did, and its forward is as wide as the widest
  draft of sequences drawn at random from the recorded rounds.
* Prefill takes as long as it did, one prompt after the other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from harness.config import ConfigError
from harness.costs.headroom import contexts, settings_of
from harness.costs.table import CostTable, DraftingCost
from harness.store.records import BASELINE, GenerationRecord, Run

Records = Sequence[GenerationRecord]
Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Replayed:
    """One method at one batch size and one draft length."""

    run_id: str
    target: str
    task: str
    temperature: float
    method: str
    batch: int
    length: int | None
    """Levels of a draft; None means as recorded."""
    tau: float
    tokens_per_s: float
    """Tokens per second of the whole batch."""
    speedup: float
    """Speedup over vanilla, replayed at the same batch size."""
    marks: tuple[str, ...]


def replay(
    run: Run, table: CostTable, lengths: Sequence[int] | None = None, batches: Sequence[int] | None = None
) -> list[Replayed]:
    """Every arm of a run at these batches (all of the table's) and lengths (all up to its deepest draft).

    Raises:
        ConfigError: a drafter that is not in the table, or a place outside of it, with what to type.
    """
    vanilla = [record for record in run.records if record.arm == BASELINE]
    found = []
    for method in dict.fromkeys(record.arm for record in run.records if record.kind == "arm"):
        records = [record for record in run.records if record.arm == method]
        if method == BASELINE or not any(map(any, (record.drafted for record in records))):
            continue
        drafting = table.drafting(method, settings_of(run.manifest, method))
        if drafting is None:
            raise ConfigError(
                f"cost table of {table.name}: {method} as set in {run.manifest.run_id} is not in it;"
                f" type python -m harness.cost target={run.manifest.cell.target} method=[{method}], and"
                " its settings as they were"
            )
        deepest = max(max(record.depth, default=0) for record in records)
        is_tree = any(record.drafted != record.depth for record in records)
        marks = ["replayed", *["tree: nodes not cut"] * is_tree]
        marks += ["without prefill"] * (not any(record.prefill_ns for record in records))
        for batch in batches or table.forward.axes["batch"]:
            base = _rate(vanilla, table, None, batch, None)[1]
            for length in (*(lengths or range(1, deepest + 1)), None):
                tau, rate = _rate(records, table, drafting, batch, length)
                found.append(
                    Replayed(
                        run_id=run.manifest.run_id,
                        target=run.manifest.cell.target,
                        task=run.manifest.cell.task,
                        temperature=run.manifest.cell.temperature,
                        method=method,
                        batch=batch,
                        length=length,
                        tau=tau,
                        tokens_per_s=rate,
                        speedup=rate / base,
                        marks=tuple(marks),
                    )
                )
    return found


def _rate(
    records: Records, table: CostTable, drafting: DraftingCost | None, batch: int, length: int | None
) -> tuple[float, float]:
    """Tokens a round, and tokens per second of a full batch, with drafts of at most `length` levels."""
    others = _widest([_size(r, length) for r in records], batch - 1)
    num_tokens = num_emitted = 0
    num_rounds = seconds = 0.0
    for record in records:
        emitted = np.asarray(record.emitted)
        kept = emitted if length is None else np.minimum(emitted, length + 1)
        # What is lost takes further rounds.
        more = emitted.sum() / kept.sum() if len(kept) else 1.0
        num_tokens += len(record.output_ids)
        num_emitted += int(emitted.sum())
        num_rounds += more * len(emitted)
        rounds = _round_seconds(record, table, drafting, batch, length, others)
        seconds += record.prefill_ns * 1e-9 + more * float(rounds.sum()) / batch
    return num_emitted / num_rounds if num_rounds else math.nan, num_tokens / seconds


def _round_seconds(
    record: GenerationRecord,
    table: CostTable,
    drafting: DraftingCost | None,
    batch: int,
    length: int | None,
    others: tuple[Floats, Floats],
) -> Floats:
    """Seconds of a batch's rounds in which this sequence has its recorded ones, [rounds]."""
    before, size = contexts([record]), _size(record, length)
    widths, shares = others
    wide = np.maximum(size[:, None], widths[None])
    steps = (table.step_seconds(batch, before[:, None], 1 + wide) * shares).sum(-1)
    if drafting is None:
        return np.asarray(steps, float)
    drafts = drafting.round.at(batch=batch, context=before)
    if drafting.call is not None:
        cut = np.asarray(record.drafted, float) - size
        drafts = np.maximum(drafts - cut * drafting.call.at(batch=batch, context=before, tokens=1), 0)
    return np.asarray(steps + drafts, float)


def _size(record: GenerationRecord, length: int | None) -> Floats:
    """Nodes of each round's draft; only chains are cut."""
    drafted = np.asarray(record.drafted, float)
    return drafted if length is None or record.drafted != record.depth else np.minimum(drafted, length)


def _widest(sizes: Sequence[Floats], count: int) -> tuple[Floats, Floats]:
    """The largest of `count` drafts drawn at random: what it may be, and how likely; 0 if there is none."""
    values, number = np.unique(np.concatenate([*sizes, np.zeros(0)]), return_counts=True)
    if count < 1 or not len(values):
        return np.zeros(1), np.ones(1)
    below = np.cumsum(number / number.sum()) ** count
    return values, np.diff(below, prepend=0.0)
