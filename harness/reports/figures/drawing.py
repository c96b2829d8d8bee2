"""Lays out the panels of each figure, one per task, and writes the files.

Equal rows give equal bytes: no global state of matplotlib, no dates, and the font that matplotlib ships.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from harness.analysis.batch_scaling import break_even_of, by_batch, curves
from harness.analysis.row import Row
from harness.config import ConfigError
from harness.reports.figures import panels as paints
from harness.reports.figures import progress, serving
from harness.reports.figures.panels import INK, Paint
from harness.store.integrity.paths import read_file, refuse_link
from harness.store.records import Cell
from harness.system.files import PART, sync_folder, write_whole
from harness.system.naming import slug

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class _Set(NamedTuple):
    """Key of the figures that belong together."""

    where: Cell
    """The cell, with the task "" for all tasks, and the batch size 0 for all batch sizes."""
    variant: str
    """Letter of a footnote, or ""."""


_TEMPERATURE = "T"
_DISTINGUISHING: tuple[tuple[str, Callable[[_Set], str | float]], ...] = (
    ("batch", lambda one: one.where.batch_size),
    (_TEMPERATURE, lambda one: one.where.temperature),
    ("", lambda one: one.where.profile),
    ("", lambda one: one.where.baseline),
    ("", lambda one: one.where.acceptor),
    ("", lambda one: one.where.engine),
    ("", lambda one: one.where.scenario),
    ("", lambda one: one.variant),
)
"""Label and value of the settings that may distinguish sets of a target and decoding, in file-name order."""

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
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "text.parse_math": False,
    "svg.hashsalt": "specbench",
    "svg.fonttype": "path",
}


def draw(rows: Sequence[Row], folder: Path, prefix: str = "") -> list[Path]:
    """Write every figure that `rows` have numbers for, as PNG and SVG, and return the files in order.

    Each target, decoding and other setting has a set of figures, whose panels are its tasks. Where batch
    sizes differ, a further figure has them as its axis. Without times (`measure=acceptance`) no figure shows
    speed.
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
    written += _over_batches(rows, folder, prefix)
    return written + _over_temperatures(rows, folder, prefix)


def _over_batches(rows: Sequence[Row], folder: Path, prefix: str) -> list[Path]:
    """Figures for rows that differ in batch size: speedup, and what all users get against what one sees."""
    written: list[Path] = []
    together: dict[_Set, list[Row]] = {}
    for group in by_batch(rows):
        if any(break_even_of(curve) for curve in curves(group).values()):
            where = replace(group[0].where, task="", batch_size=0)
            together.setdefault(_Set(where, group[0].variant), []).extend(group)
    for key, group in together.items():
        name = f"{prefix}{_name(key, together)}"
        written += _figure(group, folder, f"{name}-{BATCHES}", BATCHES, paints.by_batch)
        if any(serving.has_latencies(row) for row in group):
            written += _figure(group, folder, f"{name}-{USERS}", USERS, serving.by_user)
    return written


def _over_temperatures(rows: Sequence[Row], folder: Path, prefix: str) -> list[Path]:
    """A figure for rows that differ in temperature, with the tasks that were measured at several."""
    cells: dict[_Set, list[Row]] = {}
    for row in rows:
        if math.isfinite(row.tau):
            where = replace(row.where, decoding="", temperature=0.0)
            cells.setdefault(_Set(where, row.variant), []).append(row)
    groups: dict[_Set, list[Row]] = {}
    for key, own in cells.items():
        if len({row.where.temperature for row in own}) > 1:
            groups.setdefault(_Set(replace(key.where, task=""), key.variant), []).extend(own)
    written: list[Path] = []
    for key, group in groups.items():
        name = f"{prefix}{_name(key, groups)}-{TEMPERATURES}"
        written += _figure(group, folder, name, TEMPERATURES, progress.by_temperature)
    return written


def _name(key: _Set, keys: Collection[_Set]) -> str:
    """Target and decoding, and every other setting in which the sets differ."""
    # A decoding names its temperature, which is added only where one name stands for several.
    decodings = {(other.where.decoding, other.where.temperature) for other in keys}
    is_clear = len(decodings) == len({name for name, _ in decodings})
    others = [
        f"{label}{value:g}" if isinstance(value, int | float) else value
        for label, value_of in _DISTINGUISHING
        if (value := value_of(key)) != ""
        and len({value_of(other) for other in keys}) > 1
        and not (is_clear and label == _TEMPERATURE)
    ]
    return ".".join(slug(part) for part in (key.where.target, key.where.decoding, *others) if part)


def _figure(rows: Sequence[Row], folder: Path, name: str, kind: str, paint: Paint) -> list[Path]:
    """Draw the panels, with a shared legend where lines or colours need one; return the files."""
    import matplotlib
    from matplotlib.figure import Figure

    tasks = list(dict.fromkeys(row.where.task for row in rows))
    across = min(len(tasks), _MAX_ACROSS)
    down = math.ceil(len(tasks) / across)
    most = max(sum(row.where.task == task for row in rows) for task in tasks)
    is_lines = kind in _Y_LABELS
    height = 2.9 if is_lines else 0.75 + 0.3 * most
    # Bars have the names beside them, and numbers behind them.
    longest = 0 if is_lines else max(len(paints.label(row)) for row in rows)
    width = across * max(6.4 if across == 1 else 3.7, _LETTER * longest + _BARS)
    # `rc_context` restores the caller's settings; pyplot, which keeps a list of open figures, is not needed.
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        style: dict[Any, Any] = _STYLE  # Any, as matplotlib types every key as a literal of its own
        matplotlib.rcParams.update(style)
        figure = Figure(figsize=(width, height * down + 0.75), layout="constrained")
        panels = figure.subplots(down, across, squeeze=False, sharex=True, sharey=is_lines)
        colours = paints.colours(rows)
        for panel, task in zip(panels.flat, tasks, strict=False):
            paint(panel, [row for row in rows if row.where.task == task], colours)
            panel.set_title(task)
        for panel in panels.flat[len(tasks) :]:
            panel.set_visible(False)
        _label(figure, panels, kind, len(tasks), _title(rows[0], kind))
        return _save(figure, folder, name)


def _title(row: Row, kind: str) -> str:
    marks = [
        *[f"batch size {row.where.batch_size}"] * (kind not in (BATCHES, USERS)),
        *["quick"] * (row.where.profile == "quick"),
        row.variant,
    ]
    at = [f"T = {row.where.temperature:g} ({row.where.decoding})"] * (kind != TEMPERATURES)
    return ", ".join([row.where.target, *at, *filter(None, marks)])


def _label(figure: Figure, panels: Any, kind: str, num_panels: int, title: str) -> None:
    across = panels.shape[1]
    for i, panel in enumerate(panels.flat[:num_panels]):
        if i + across >= num_panels:
            # The lowest panel of each column carries the axis, even if the last row is shorter.
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
        _add_legend(figure, known)


def _add_legend(figure: Figure, known: dict[str, Any]) -> None:
    """Put a legend below the panels, in as many columns as fit; more rows make the figure higher."""
    for columns in range(min(len(known), _MAX_COLUMNS), 0, -1):
        legend = figure.legend(
            list(known.values()), list(known), loc="outside lower left", ncols=columns, columnspacing=1.4
        )
        box = legend.get_window_extent()
        if box.width <= figure.bbox.width or columns == 1:
            break
        legend.remove()
    num_rows = math.ceil(len(known) / columns)
    if more := num_rows - math.ceil(len(known) / _MAX_COLUMNS):
        figure.set_figheight(figure.get_figheight() + more * box.height / num_rows / figure.dpi)


def _save(figure: Figure, folder: Path, name: str) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    png, svg = folder / f"{name}.png", folder / f"{name}.svg"
    for path, options in ((png, {"dpi": 160, "metadata": {"Software": None}}), (svg, {"metadata": _NO_DATE})):
        drawn = BytesIO()
        figure.savefig(drawn, format=path.suffix[1:], **options)
        # A death in the middle of a picture must not leave half of it under its name.
        write_whole(path, drawn.getvalue())
    return [png, svg]


def draw_once(rows: Sequence[Row], folder: Path) -> list[Path]:
    """The figures of a run in its folder `figures`, drawn if they are not all there and whole."""
    found = [] if folder.is_symlink() or not folder.is_dir() else sorted(folder.glob("*"))
    if (found and all(map(_is_whole, found))) or not folder.parent.is_dir():
        return found
    refuse_link(folder)
    if found:
        return draw(rows, folder)
    # Drawn beside its place, because some figures without the others look as complete as all of them.
    part = folder.with_name(folder.name + PART)
    refuse_link(part)
    shutil.rmtree(part, ignore_errors=True)
    if not draw(rows, part):
        return []
    if folder.is_dir():
        folder.rmdir()
    part.rename(folder)
    sync_folder(folder.parent)
    return sorted(folder.glob("*"))


def _is_whole(path: Path) -> bool:
    """Whether a picture has its end, and any other file is none that was being written."""
    try:
        return read_file(path)[-64:].rstrip().endswith(_ENDS.get(path.suffix, b"")) and path.suffix != PART
    except (ConfigError, OSError):
        return False


def _has_varying_drafts(row: Row) -> bool:
    return len({shape.nodes for shape in row.draft_shapes if math.isfinite(shape.nodes)}) > 1


def _has_positions(row: Row) -> bool:
    return row.ledger is not None and any(map(math.isfinite, row.ledger.conditional))


_LETTER, _BARS = 0.068, 2.6
"""Inches of a letter of a name beside a bar, and of the longest bar with its number."""
_MAX_COLUMNS = 5
"""Columns of a legend."""
_NO_DATE = {"Date": None}
_ENDS = {".png": b"IEND\xaeB`\x82", ".svg": b"</svg>"}
_X_LABELS = {
    "speedup": "speedup over vanilla, 95 % interval",
    "tau": "tokens a round (tau), 95 % interval",
    "acceptance-by-position": "position in the draft",
    "time-split": "% of decode time",
    "batches": "sequences at the same time",
    "users": "tokens/s that one user sees behind the first token",
    "latencies": "seconds (p50, p90, p99): first token, request",
    "tau-by-call": "calls to one question, 95 % interval",
    "tau-along": "output tokens, in windows of 256",
    "tau-by-temperature": "temperature, 95 % interval",
    "drafts-along": "output tokens, in windows of 32",
}
_Y_LABELS = {
    "acceptance-by-position": "share kept, given that all before were",
    "batches": "speedup over vanilla",
    "users": "tokens/s of all users",
    "tau-by-call": "tokens a round (tau)",
    "tau-along": "tokens a round (untrimmed)",
    "tau-by-temperature": "tokens a round (tau)",
    "drafts-along": "nodes (dotted: levels) of a draft",
}
"""Only figures of lines have a labelled y axis."""
BATCHES = "batches"
USERS = "users"
TEMPERATURES = "tau-by-temperature"
KINDS: dict[str, tuple[Callable[[Row], bool], Paint]] = {
    "speedup": (lambda row: math.isfinite(row.speedup), paints.speedup),
    "tau": (lambda row: math.isfinite(row.tau), paints.tau),
    "acceptance-by-position": (_has_positions, paints.by_position),
    "latencies": (serving.has_latencies, serving.latencies),
    "time-split": (lambda row: bool(row.split), paints.split),
    "tau-by-call": (lambda row: any(math.isfinite(call.tau) for call in row.calls), progress.by_call),
    "tau-along": (lambda row: len(row.windows) > 1, progress.along),
    "drafts-along": (_has_varying_drafts, progress.drafts),
}
