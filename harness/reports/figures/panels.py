"""The panels of the figures: each function paints one panel from the rows of one task."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from harness.analysis.batch_scaling import curves
from harness.analysis.metrics import STAGES
from harness.analysis.row import Row
from harness.reports import formatting
from harness.store.records import BASELINE

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Paint = Callable[["Axes", Sequence[Row], dict[str, str]], None]
"""Paints the rows into a panel. Third argument: colour by method."""
INK = "#222222"
# The colour-blind safe palette of Okabe and Ito (2008), without its black and its pale yellow.
_COLOURS = (
    *("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#882255", "#44AA99"),
    *("#332288", "#999933", "#AA4499", "#DDCC77"),
)
_STAGE_COLOURS = dict(zip(STAGES, ("#E69F00", "#0072B2", "#CC79A7", "#009E73", "#BBBBBB"), strict=True))
_BASELINE_COLOUR, _RUNG_COLOUR, FAINT = "#444444", "#A0A0A0", "#D9D9D9"
MARKERS = "osD^vP*X"


def colours(rows: Sequence[Row]) -> dict[str, str]:
    """Colour by method, the same in all panels: dark for vanilla, grey for rungs, the palette for arms."""
    arms = list(dict.fromkeys(r.method for r in rows if r.kind == "arm" and r.method != BASELINE))
    grey = {r.method: _BASELINE_COLOUR if r.method == BASELINE else _RUNG_COLOUR for r in rows}
    return {**grey, **{arm: _COLOURS[i % len(_COLOURS)] for i, arm in enumerate(arms)}}


def begin_at(panel: Axes, x: float | None = None, y: float | None = None) -> None:
    """Have an axis begin at a value. Its other end has room for what all panels show that share the axis.

    Limits would not do: once one end is set, a panel that is drawn later no longer moves the other one.
    """
    if x is not None:
        panel.axvline(x, visible=False).sticky_edges.x.append(x)
    if y is not None:
        panel.axhline(y, visible=False).sticky_edges.y.append(y)


def _method_axis(panel: Axes, rows: Sequence[Row]) -> None:
    """Label the y axis with the methods, from the top down, and mark those with a fault."""
    panel.set_yticks(range(len(rows)), [label(row) for row in rows])
    panel.set_ylim(len(rows) - 0.4, -0.6)
    panel.tick_params(axis="y", length=0)
    panel.grid(axis="x", color=FAINT, linewidth=0.6)
    panel.set_axisbelow(True)


def label(row: Row) -> str:
    """The name of a method, with its fault."""
    return formatting.method(row) + fault_mark(row)


def fault_mark(row: Row) -> str:
    """Suffix that marks a broken, lossy or forced method."""
    return f" ({row.verdict})" if row.verdict == "broken" or not row.lossless else ""


def _bars(
    panel: Axes,
    rows: Sequence[Row],
    colours: dict[str, str],
    value: Callable[[Row], float],
    ends: Callable[[Row], tuple[float, float] | None],
    write: Callable[[float], str],
) -> None:
    """Horizontal bars with intervals and numbers; the bar of a broken arm is a hatched outline."""
    _method_axis(panel, rows)
    for i, row in enumerate(rows):
        broken, colour = row.verdict == "broken", colours[row.method]
        panel.barh(
            i,
            value(row),
            height=0.62,
            color="none" if broken else colour,
            edgecolor=colour,
            hatch="////" if broken else None,
            linewidth=0.8,
        )
        low, high = ends(row) or (value(row), value(row))
        # With few clusters, a percentile interval may exclude its own value.
        errors = [[max(value(row) - low, 0.0)], [max(high - value(row), 0.0)]]
        if high > low:
            panel.errorbar(value(row), i, xerr=errors, fmt="none", ecolor=INK, elinewidth=1.1, capsize=2.5)
        panel.annotate(
            write(value(row)),
            (max(value(row), high), i),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            fontsize=8.5,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6, "alpha": 0.85},
        )
    panel.axvline(1.0, color=INK, linewidth=0.9, linestyle=(0, (4, 2)), zorder=3)
    panel.margins(x=0.24)


def speedup(panel: Axes, rows: Sequence[Row], colours: dict[str, str]) -> None:
    """Bars of the speedup over vanilla, with the band in which vanilla differs from itself."""
    floor = next((row.aa_floor for row in rows if math.isfinite(row.aa_floor)), math.nan)
    if math.isfinite(floor):
        panel.axvspan(
            1 - floor, 1 + floor, color="#F0E442", alpha=0.55, linewidth=0, label="A/A floor", zorder=0
        )
    # Vanilla has no interval, because the band already shows how well it repeats.
    _bars(
        panel,
        rows,
        colours,
        lambda row: row.speedup,
        lambda row: None if row.method == BASELINE else row.speedup_ci,
        formatting.times,
    )


def tau(panel: Axes, rows: Sequence[Row], colours: dict[str, str]) -> None:
    """Bars of the acceptance length."""
    _bars(panel, rows, colours, lambda row: row.tau, lambda row: row.tau_ci, formatting.number)


def by_position(panel: Axes, rows: Sequence[Row], colours: dict[str, str]) -> None:
    """Share of rounds that keep the draft's token at each position, given that all earlier ones were kept."""
    from matplotlib.ticker import MaxNLocator

    for i, row in enumerate(rows):
        assert row.ledger is not None
        shares = row.ledger.conditional
        fault = fault_mark(row)
        panel.plot(
            range(1, len(shares) + 1),
            shares,
            color=colours[row.method],
            linestyle="--" if fault else "-",
            marker=MARKERS[i % len(MARKERS)],
            markersize=4.5,
            linewidth=1.5,
            label=formatting.method(row) + fault,
            clip_on=False,
        )
    panel.set_ylim(0, 1)
    panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    panel.grid(axis="y", color=FAINT, linewidth=0.6)


def by_batch(panel: Axes, rows: Sequence[Row], colours: dict[str, str]) -> None:
    """Speedup over vanilla at the same batch size, by batch size."""
    from matplotlib.ticker import FixedLocator, NullLocator, ScalarFormatter

    batches = sorted({row.where.batch_size for row in rows})
    for i, (method, curve) in enumerate(curves(rows).items()):
        timed = [row for row in curve if math.isfinite(row.speedup)]
        if method == BASELINE or not timed:
            continue
        heights = [row.speedup for row in timed]
        ends = [row.speedup_ci or (row.speedup, row.speedup) for row in timed]
        fault = next((fault_mark(row) for row in timed if fault_mark(row)), "")
        panel.errorbar(
            [row.where.batch_size for row in timed],
            heights,
            yerr=[
                [max(value - low, 0.0) for value, (low, _) in zip(heights, ends, strict=True)],
                [max(high - value, 0.0) for value, (_, high) in zip(heights, ends, strict=True)],
            ],
            color=colours[method],
            linestyle="--" if fault else "-",
            marker=MARKERS[i % len(MARKERS)],
            markersize=4.5,
            linewidth=1.5,
            capsize=2.5,
            label=formatting.method(timed[0]) + fault,
        )
    panel.axhline(1.0, color=INK, linewidth=0.9, linestyle=(0, (4, 2)))
    panel.set_xscale("log", base=2)
    panel.xaxis.set_major_locator(FixedLocator(batches))
    panel.xaxis.set_minor_locator(NullLocator())
    panel.xaxis.set_major_formatter(ScalarFormatter())
    begin_at(panel, y=0)
    panel.grid(axis="y", color=FAINT, linewidth=0.6)


def split(panel: Axes, rows: Sequence[Row], colours: dict[str, str]) -> None:
    """Stacked bars of the stages' shares of decode time, in percent."""
    _method_axis(panel, rows)
    left = [0.0] * len(rows)
    for stage in STAGES:
        shares = [max(100 * row.split[stage], 0.0) for row in rows]
        panel.barh(range(len(rows)), shares, left=left, height=0.62, color=_STAGE_COLOURS[stage], label=stage)
        left = [start + share for start, share in zip(left, shares, strict=True)]
    panel.set_xlim(0, 100)
