"""Panels of servers: latencies by percentile, and throughput against what one user sees."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from harness.analysis.batch_scaling import curves
from harness.analysis.row import Row
from harness.reports import formatting
from harness.reports.figures.panels import FAINT, MARKERS, begin_at, fault_mark, label

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def has_latencies(row: Row) -> bool:
    """Whether the streams of a row were timed."""
    return row.serving is not None and math.isfinite(row.serving.first_token.p50)


def latencies(panel: Axes, rows: Sequence[Row], colours: dict[str, str]) -> None:
    """Seconds to the first token (circles) and of the request (squares): median, p90 and p99 on one line."""
    panel.set_yticks(range(len(rows)), [label(row) for row in rows])
    panel.set_ylim(len(rows) - 0.4, -0.6)
    panel.tick_params(axis="y", length=0)
    panel.grid(axis="x", color=FAINT, linewidth=0.6)
    for i, row in enumerate(rows):
        assert row.serving is not None
        pairs = ((row.serving.first_token, "o", -0.14), (row.serving.request, "s", 0.14))
        for (p50, p90, p99), marker, shift in pairs:
            colour, height = colours[row.method], i + shift
            panel.plot([p50, p99], [height, height], color=colour, linewidth=1.2)
            panel.plot([p50], [height], color=colour, marker=marker, markersize=5.5)
            panel.plot([p90, p99], [height, height], color=colour, marker="|", markersize=7, linestyle="")
    panel.set_xscale("log")


def by_user(panel: Axes, rows: Sequence[Row], colours: dict[str, str]) -> None:
    """Tokens per second of all users against those of one, a point per number of users, joined by method."""
    for i, (method, curve) in enumerate(curves(rows).items()):
        shown = [row for row in curve if has_latencies(row)]
        if not shown:
            continue
        fault = next((fault_mark(row) for row in shown if fault_mark(row)), "")
        across = [row.serving.user_tokens_per_s for row in shown if row.serving]
        heights = [row.tokens_per_s for row in shown]
        panel.plot(
            across,
            heights,
            color=colours[method],
            linestyle="--" if fault else "-",
            marker=MARKERS[i % len(MARKERS)],
            markersize=4.5,
            linewidth=1.5,
            label=formatting.method(shown[0]) + fault,
        )
        for row, x, y in zip(shown, across, heights, strict=True):
            number, place = str(row.where.batch_size), (4, 3)
            panel.annotate(number, (x, y), xytext=place, textcoords="offset points", fontsize=7)
    begin_at(panel, x=0, y=0)
    panel.grid(color=FAINT, linewidth=0.6)
