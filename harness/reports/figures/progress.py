"""Panels of tau over the calls of a question, along the output, and over temperature."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import count
from typing import TYPE_CHECKING

from harness.analysis.parts.by_call import SHAPE_WINDOW, WINDOW
from harness.analysis.row import Ends, Row
from harness.reports import formatting
from harness.reports.figures.panels import FAINT, MARKERS, begin_at, fault_mark

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Point = tuple[float, float, Ends]
"""Place on the x axis, tau, and the ends of its interval."""


def _line(panel: Axes, number: int, row: Row, colour: str, points: Iterable[Point]) -> None:
    """One method's tau with its intervals; `number` chooses the marker."""
    known = [point for point in points if math.isfinite(point[1])]
    places, values = [place for place, _, _ in known], [value for _, value, _ in known]
    ends = [interval or (value, value) for _, value, interval in known]
    mark = fault_mark(row)
    panel.errorbar(
        places,
        values,
        yerr=[
            [max(value - low, 0.0) for value, (low, _) in zip(values, ends, strict=True)],
            [max(high - value, 0.0) for value, (_, high) in zip(values, ends, strict=True)],
        ],
        color=colour,
        linestyle="--" if mark else "-",
        marker=MARKERS[number % len(MARKERS)],
        markersize=4.5,
        linewidth=1.5,
        capsize=2.5,
        label=formatting.method(row) + mark,
    )


def _finish(panel: Axes) -> None:
    begin_at(panel, y=1)
    panel.margins(x=0.08)
    panel.grid(axis="y", color=FAINT, linewidth=0.6)


def by_call(panel: Axes, rows: Sequence[Row], colours: dict[str, str]) -> None:
    """Tau in each call to a question."""
    from matplotlib.ticker import FixedLocator

    for i, row in enumerate(rows):
        own = [call for call in row.calls if call.kind == row.calls[0].kind]
        _line(panel, i, row, colours[row.method], ((call.number, call.tau, call.tau_ci) for call in own))
    panel.xaxis.set_major_locator(FixedLocator(sorted({c.number for row in rows for c in row.calls})))
    panel.xaxis.set_major_formatter(lambda place, _: f"{rows[0].calls[0].kind} {place:g}")
    _finish(panel)


def along(panel: Axes, rows: Sequence[Row], colours: dict[str, str]) -> None:
    """Tau of the rounds that began in each window of the output."""
    for i, row in enumerate(rows):
        places = count(WINDOW / 2, WINDOW)
        points = ((place, value, None) for place, value in zip(places, row.windows, strict=False))
        _line(panel, i, row, colours[row.method], points)
    _finish(panel)


def drafts(panel: Axes, rows: Sequence[Row], colours: dict[str, str]) -> None:
    """Nodes and levels of the drafts that began in each window of the output; a policy chooses both."""
    for i, row in enumerate(rows):
        places = [SHAPE_WINDOW * (number + 0.5) for number in range(len(row.draft_shapes))]
        for values, style, label in (
            ([shape.nodes for shape in row.draft_shapes], "-", formatting.method(row) + fault_mark(row)),
            ([shape.levels for shape in row.draft_shapes], ":", None),
        ):
            panel.plot(
                places,
                values,
                color=colours[row.method],
                linestyle=style,
                marker=MARKERS[i % len(MARKERS)],
                markersize=4.5,
                linewidth=1.5,
                label=label,
            )
    begin_at(panel, y=0)
    panel.margins(x=0.08)
    panel.grid(axis="y", color=FAINT, linewidth=0.6)


def by_temperature(panel: Axes, rows: Sequence[Row], colours: dict[str, str]) -> None:
    """Tau at each temperature; lines join the rows of one method."""
    methods: dict[str, list[Row]] = {}
    for row in sorted(rows, key=lambda row: row.where.temperature):
        methods.setdefault(formatting.method(row), []).append(row)
    for i, own in enumerate(methods.values()):
        points = ((row.where.temperature, row.tau, row.tau_ci) for row in own)
        _line(panel, i, own[0], colours[own[0].method], points)
    _finish(panel)
