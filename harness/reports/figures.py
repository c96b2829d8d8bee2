"""Figures: speedup, acceptance length, acceptance by position and the time split, one panel a task.

The same rows give the same bytes: no global matplotlib state, no dates, the font that matplotlib ships.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from harness.analysis.batch_scaling import break_even_of, by_batch, curves
from harness.analysis.metrics import STAGES
from harness.analysis.row import Row
from harness.reports import formatting
from harness.store.records import BASELINE, Cell
from harness.system.naming import slug

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Draw = Callable[["Axes", Sequence[Row], dict[str, str]], None]


class _Set(NamedTuple):
    """Figures that belong together: a cell with all its tasks (task ""), or all batch sizes too (0)."""

    where: Cell
    variant: str


_TEMPERATURE = "T"
_TELLING: tuple[tuple[str, Callable[[_Set], str | float]], ...] = (
    ("batch", lambda one: one.where.batch_size),
    (_TEMPERATURE, lambda one: one.where.temperature),
    ("", lambda one: one.where.profile),
    ("", lambda one: one.where.baseline),
    ("", lambda one: one.where.acceptor),
    ("", lambda one: one.where.engine),
    ("", lambda one: one.where.scenario),
    ("", lambda one: one.variant),
)
"""Label and value of what may tell sets of one target and decoding apart, in the order of a file's name."""

# Okabe and Ito 2008, told apart with every common colour blindness; without its black and its pale yellow.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#882255", "#44AA99")
_STAGE_COLOURS = dict(zip(STAGES, ("#E69F00", "#0072B2", "#CC79A7", "#009E73", "#BBBBBB"), strict=True))
_BASELINE_COLOUR, _RUNG_COLOUR, _INK, _FAINT = "#444444", "#A0A0A0", "#222222", "#D9D9D9"
_MARKERS = "osD^vP*X"
_MAX_ACROSS = 3
_STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 9,
    "axes.edgecolor": "#888888",
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.labelcolor": _INK,
    "text.color": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "svg.hashsalt": "specbench",
    "svg.fonttype": "path",
}


def draw(rows: Sequence[Row], folder: Path, prefix: str = "") -> list[Path]:
    """Write every figure that `rows` have numbers for, as PNG and SVG; the files, in order.

    One set a target, decoding and other setting; its tasks are the panels. Where batches differ, one more
    figure has them as its axis. Without times
    (`measure=acceptance`) there is no figure of speed.
    """
    groups: dict[_Set, list[Row]] = {}
    for row in rows:
        groups.setdefault(_Set(replace(row.where, task=""), row.variant), []).append(row)
    written: list[Path] = []
    for key, group in groups.items():
        name = prefix + _name(key, groups)
        for kind, (has, paint) in KINDS.items():
            shown = [row for row in group if has(row)]
            if shown:
                written += _figure(shown, folder, f"{name}-{kind}", kind, paint)
    together: dict[_Set, list[Row]] = {}
    for group in by_batch(rows):
        if any(break_even_of(curve) for curve in curves(group).values()):
            where = replace(group[0].where, task="", batch_size=0)
            together.setdefault(_Set(where, group[0].variant), []).extend(group)
    for key, group in together.items():
        name = f"{prefix}{_name(key, together)}-{BATCHES}"
        written += _figure(group, folder, name, BATCHES, _by_batch)
    return written


def _name(key: _Set, keys: Collection[_Set]) -> str:
    """Target and decoding, and whatever else tells the sets apart."""
    # A decoding names its temperature, which is added only where one name stands for several.
    decodings = {(other.where.decoding, other.where.temperature) for other in keys}
    is_clear = len(decodings) == len({name for name, _ in decodings})
    told = [
        f"{label}{value:g}" if isinstance(value, int | float) else value
        for label, value_of in _TELLING
        if (value := value_of(key)) != ""
        and len({value_of(other) for other in keys}) > 1
        and not (is_clear and label == _TEMPERATURE)
    ]
    return ".".join(slug(part) for part in (key.where.target, key.where.decoding, *told))


def _figure(rows: Sequence[Row], folder: Path, name: str, kind: str, paint: Draw) -> list[Path]:
    """Panels, a shared legend where lines or colours need one, and the files."""
    import matplotlib
    from matplotlib.figure import Figure

    tasks = list(dict.fromkeys(row.where.task for row in rows))
    across = min(len(tasks), _MAX_ACROSS)
    down = math.ceil(len(tasks) / across)
    most = max(sum(row.where.task == task for row in rows) for task in tasks)
    is_lines = kind in _Y_LABELS
    height = 2.9 if is_lines else 0.75 + 0.3 * most
    width = 6.4 if across == 1 else 3.7 * across
    # `rc_context` restores what the caller had; pyplot, with its list of open figures, is not needed.
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        style: dict[Any, Any] = _STYLE  # Any, as matplotlib types every key as a literal of its own
        matplotlib.rcParams.update(style)
        figure = Figure(figsize=(width, height * down + 0.75), layout="constrained")
        panels = figure.subplots(down, across, squeeze=False, sharex=True, sharey=is_lines)
        colours = _colours(rows)
        for panel, task in zip(panels.flat, tasks, strict=False):
            paint(panel, [row for row in rows if row.where.task == task], colours)
            panel.set_title(task)
        for panel in panels.flat[len(tasks) :]:
            panel.set_visible(False)
        _label(figure, panels, kind, len(tasks), _title(rows[0], kind))
        return _save(figure, folder, name)


def _title(row: Row, kind: str) -> str:
    marks = [
        *[f"batch size {row.where.batch_size}"] * (kind != BATCHES),
        *["quick"] * (row.where.profile == "quick"),
        row.variant,
    ]
    return ", ".join(
        [row.where.target, f"T = {row.where.temperature:g} ({row.where.decoding})", *filter(None, marks)]
    )


def _label(figure: Figure, panels: Any, kind: str, num_panels: int, title: str) -> None:
    across = panels.shape[1]
    for i, panel in enumerate(panels.flat[:num_panels]):
        if i + across >= num_panels:
            # The lowest panel of its column carries the axis, though the row below it may hold others.
            panel.tick_params(labelbottom=True)
            panel.set_xlabel(_X_LABELS[kind])
        if kind in _Y_LABELS and i % across == 0:
            panel.set_ylabel(_Y_LABELS[kind])
    figure.suptitle(title, x=0.01, ha="left", fontsize=9.5, color="#555555")
    known: dict[str, Any] = {}
    for panel in panels.flat[:num_panels]:
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True):
            known.setdefault(label, handle)
    if known:
        columns = min(len(known), 5)
        figure.legend(
            list(known.values()), list(known), loc="outside lower left", ncols=columns, columnspacing=1.4
        )


def _save(figure: Figure, folder: Path, name: str) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    png, svg = folder / f"{name}.png", folder / f"{name}.svg"
    figure.savefig(png, dpi=160, metadata={"Software": None})
    figure.savefig(svg, metadata={"Date": None})
    return [png, svg]


def _colours(rows: Sequence[Row]) -> dict[str, str]:
    """One colour a method, the same in all panels: vanilla dark, rungs grey, arms the palette."""
    arms = list(dict.fromkeys(r.method for r in rows if r.kind == "arm" and r.method != BASELINE))
    grey = {r.method: _BASELINE_COLOUR if r.method == BASELINE else _RUNG_COLOUR for r in rows}
    return {**grey, **{arm: _COLOURS[i % len(_COLOURS)] for i, arm in enumerate(arms)}}


def _method_axis(panel: Axes, rows: Sequence[Row]) -> None:
    """Methods from the top down; a broken, lossy or forced one says so."""
    names = []
    for row in rows:
        told = _fault(row)
        names.append(formatting.method(row) + told)
    panel.set_yticks(range(len(rows)), names)
    panel.set_ylim(len(rows) - 0.4, -0.6)
    panel.tick_params(axis="y", length=0)
    panel.grid(axis="x", color=_FAINT, linewidth=0.6)
    panel.set_axisbelow(True)


def _fault(row: Row) -> str:
    return f" ({row.verdict})" if row.verdict == "broken" or not row.lossless else ""


def _bars(
    panel: Axes,
    rows: Sequence[Row],
    colours: dict[str, str],
    value: Callable[[Row], float],
    ends: Callable[[Row], tuple[float, float] | None],
    write: Callable[[float], str],
) -> None:
    """Horizontal bars with intervals and their numbers; a broken one is only an outline, hatched."""
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
        # A percentile interval need not hold its value where clusters are few.
        errors = [[max(value(row) - low, 0.0)], [max(high - value(row), 0.0)]]
        if high > low:
            panel.errorbar(value(row), i, xerr=errors, fmt="none", ecolor=_INK, elinewidth=1.1, capsize=2.5)
        panel.annotate(
            write(value(row)),
            (max(value(row), high), i),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            fontsize=8.5,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6, "alpha": 0.85},
        )
    panel.axvline(1.0, color=_INK, linewidth=0.9, linestyle=(0, (4, 2)), zorder=3)
    panel.margins(x=0.24)
    panel.set_xlim(left=0)


def _speedup(panel: Axes, rows: Sequence[Row], colours: dict[str, str]) -> None:
    floor = next((row.aa_floor for row in rows if math.isfinite(row.aa_floor)), math.nan)
    if math.isfinite(floor):
        panel.axvspan(
            1 - floor, 1 + floor, color="#F0E442", alpha=0.55, linewidth=0, label="A/A floor", zorder=0
        )
    # The band already shows how well vanilla repeats itself.
    _bars(
        panel,
        rows,
        colours,
        lambda row: row.speedup,
        lambda row: None if row.method == BASELINE else row.speedup_ci,
        formatting.times,
    )


def _tau(panel: Axes, rows: Sequence[Row], colours: dict[str, str]) -> None:
    _bars(panel, rows, colours, lambda row: row.tau, lambda row: row.tau_ci, formatting.number)


def _by_position(panel: Axes, rows: Sequence[Row], colours: dict[str, str]) -> None:
    from matplotlib.ticker import MaxNLocator

    for i, row in enumerate(rows):
        assert row.ledger is not None
        shares = row.ledger.conditional
        told = _fault(row)
        panel.plot(
            range(1, len(shares) + 1),
            shares,
            color=colours[row.method],
            linestyle="--" if told else "-",
            marker=_MARKERS[i % len(_MARKERS)],
            markersize=4.5,
            linewidth=1.5,
            label=formatting.method(row) + told,
            clip_on=False,
        )
    panel.set_ylim(0, 1)
    panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    panel.grid(axis="y", color=_FAINT, linewidth=0.6)


def _by_batch(panel: Axes, rows: Sequence[Row], colours: dict[str, str]) -> None:
    from matplotlib.ticker import FixedLocator, NullLocator, ScalarFormatter

    batches = sorted({row.where.batch_size for row in rows})
    for i, (method, curve) in enumerate(curves(rows).items()):
        timed = [row for row in curve if math.isfinite(row.speedup)]
        if method == BASELINE or not timed:
            continue
        heights = [row.speedup for row in timed]
        ends = [row.speedup_ci or (row.speedup, row.speedup) for row in timed]
        told = next((_fault(row) for row in timed if _fault(row)), "")
        panel.errorbar(
            [row.where.batch_size for row in timed],
            heights,
            yerr=[
                [max(value - low, 0.0) for value, (low, _) in zip(heights, ends, strict=True)],
                [max(high - value, 0.0) for value, (_, high) in zip(heights, ends, strict=True)],
            ],
            color=colours[method],
            linestyle="--" if told else "-",
            marker=_MARKERS[i % len(_MARKERS)],
            markersize=4.5,
            linewidth=1.5,
            capsize=2.5,
            label=formatting.method(timed[0]) + told,
        )
    panel.axhline(1.0, color=_INK, linewidth=0.9, linestyle=(0, (4, 2)))
    panel.set_xscale("log", base=2)
    panel.xaxis.set_major_locator(FixedLocator(batches))
    panel.xaxis.set_minor_locator(NullLocator())
    panel.xaxis.set_major_formatter(ScalarFormatter())
    panel.set_ylim(bottom=0)
    panel.grid(axis="y", color=_FAINT, linewidth=0.6)


def _split(panel: Axes, rows: Sequence[Row], colours: dict[str, str]) -> None:
    _method_axis(panel, rows)
    left = [0.0] * len(rows)
    for stage in STAGES:
        shares = [max(100 * row.split[stage], 0.0) for row in rows]
        panel.barh(range(len(rows)), shares, left=left, height=0.62, color=_STAGE_COLOURS[stage], label=stage)
        left = [start + share for start, share in zip(left, shares, strict=True)]
    panel.set_xlim(0, 100)


def _has_positions(row: Row) -> bool:
    return row.ledger is not None and any(map(math.isfinite, row.ledger.conditional))


_X_LABELS = {
    "speedup": "speedup over vanilla, 95 % interval",
    "tau": "tokens a round (tau), 95 % interval",
    "acceptance-by-position": "position in the draft",
    "time-split": "% of decode time",
    "batches": "sequences at the same time",
}
_Y_LABELS = {
    "acceptance-by-position": "share kept, given that all before were",
    "batches": "speedup over vanilla",
}
"""Of figures with lines."""
BATCHES = "batches"
KINDS: dict[str, tuple[Callable[[Row], bool], Draw]] = {
    "speedup": (lambda row: math.isfinite(row.speedup), _speedup),
    "tau": (lambda row: math.isfinite(row.tau), _tau),
    "acceptance-by-position": (_has_positions, _by_position),
    "time-split": (lambda row: bool(row.split), _split),
}
