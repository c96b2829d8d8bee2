"""Content: rows, pairs and runs as the page's JSON. Numbers are raw, None where one is not known."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from harness.analysis.comparability import differences
from harness.analysis.metrics import STAGES
from harness.analysis.row import Pair, Row
from harness.reports import formatting
from harness.store.records import BASELINE, Cell, Run

_DIGITS = 6
"""Significant ones: more would be noise, and half of the page."""
_FIELDS = (
    *("method", "kind", "variant", "verdict", "difference", "lossless", "failed"),
    *("tokens_per_s", "tau", "tau_ci", "aa_floor", "roof_fraction", "loop_overhead", "looped_share"),
    *("num_prompts", "num_tokens", "mean_output_tokens", "mean_baseline_tokens", "split"),
    # Every way to state a speedup; the page shows those that it knows.
    *(field.name for field in dataclasses.fields(Row) if field.name.startswith("speedup")),
)


def content(
    rows: Sequence[Row], pairs: Sequence[Pair], runs: Sequence[Run], notes: Sequence[str]
) -> dict[str, Any]:
    """All of the page but its answers."""
    return {
        "baseline": BASELINE,
        "stages": STAGES,
        "axes": [name for name, _ in formatting.AXES],
        "varying": [name for name, _ in formatting.varying(rows)],
        "rows": [_row(row) for row in rows],
        "pairs": [_pair(pair) for pair in pairs],
        "notes": list(notes),
        "runs": [_run(run) for run in runs],
        "differences": differences(runs),
    }


def plain(value: Any) -> Any:
    """JSON types; numbers that are not finite become None."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.{_DIGITS}g}") if math.isfinite(value) else None
    return value


def place(where: Cell) -> dict[str, str]:
    """What the page filters by, as the tables write it."""
    return {name: write(where) for name, write in formatting.AXES}


def _row(row: Row) -> dict[str, Any]:
    known: dict[str, Any] = plain(
        {
            "at": place(row.where),
            "label": formatting.method(row),
            "marks": formatting.marks(row),
            "broken": row.verdict == "broken",
            **{name: getattr(row, name) for name in _FIELDS},
            "ledger": dataclasses.asdict(row.ledger) if row.ledger else None,
            "ties": dataclasses.asdict(row.ties) if row.ties else None,
            "quality": dataclasses.asdict(row.quality) if row.quality else None,
        }
    )
    return known


def _pair(pair: Pair) -> dict[str, Any]:
    known: dict[str, Any] = plain(
        {
            "at": place(pair.row.where),
            "variant": pair.row.variant,
            "over": pair.over,
            "under": pair.under,
            "ratio": pair.ratio.value,
            "ends": pair.ratio.ends,
            "difference": pair.difference,
            "broken": pair.broken,
        }
    )
    return known


def _run(run: Run) -> dict[str, Any]:
    manifest = run.manifest
    return {
        **plain(manifest.to_json()),
        "finished": run.finished,
        "num_records": len(run.records),
        "num_exhibits": len(run.exhibits),
        "failures": [formatting.failure(failure) for failure in run.failures],
    }
