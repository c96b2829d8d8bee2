"""Tables by call: the rounds of thinking, the samples of best of N and the turns of conversations."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from harness.analysis.row import Row
from harness.reports import csv_files, formatting

_HEADERS = ["method", "call", "tau", "tokens/s", "speedup", "mean of rates", "forced tokens"]


def table(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Headers and cells, a line per method and call; no line where a question has one call."""
    axes = formatting.varying(rows)
    body = []
    for row in rows:
        for call in row.calls:
            line = [
                *(write(row.where) for _, write in axes),
                formatting.method(row),
                f"{call.kind} {call.number}",
                formatting.number(call.tau) + formatting.interval(call.tau_ci),
                formatting.number(call.tokens_per_s, 1),
                formatting.times(call.speedup) + formatting.interval(call.speedup_ci),
                formatting.times(call.speedup_mean_of_rates),
                str(call.num_forced),
            ]
            body.append(formatting.strike(line) if row.verdict == "broken" else line)
    return [*(name for name, _ in axes), *_HEADERS], body


def csv(rows: Sequence[Row]) -> str:
    """The same with raw numbers; "" where there is no line."""
    lines = [
        {
            **dataclasses.asdict(row.where),
            "method": row.method,
            "variant": row.variant,
            **csv_files.flat(dataclasses.asdict(call)),
        }
        for row in rows
        for call in row.calls
    ]
    return csv_files.csv_of(lines) if lines else ""
