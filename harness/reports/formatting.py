"""Cells: how every single number, interval and mark of a row is written; tables only arrange them."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence

from harness.analysis.row import Row
from harness.store.records import BASELINE, Cell, Failure

UNKNOWN = "-"
_LONGEST_MESSAGE = 160

Axis = tuple[str, Callable[[Cell], str]]
AXES: tuple[Axis, ...] = (
    ("target", lambda cell: cell.target),
    ("task", lambda cell: cell.task),
    ("T", lambda cell: f"{cell.temperature:g}"),
    ("decoding", lambda cell: cell.decoding),
    ("batch", lambda cell: str(cell.batch_size)),
    ("profile", lambda cell: cell.profile),
    ("baseline", lambda cell: cell.baseline),
    ("acceptor", lambda cell: cell.acceptor),
    ("engine", lambda cell: cell.engine),
    ("scenario", lambda cell: cell.scenario),
)
"""What tells cells apart: heading and value."""


def varying(rows: Sequence[Row]) -> list[Axis]:
    """The axes on which `rows` differ; the decoding only where the temperature does not already tell it."""
    cells = {row.where for row in rows}
    found = [axis for axis in AXES if len({axis[1](cell) for cell in cells}) > 1]
    named = {(cell.temperature, cell.decoding) for cell in cells}
    is_clear = len({temperature for temperature, _ in named}) == len(named)
    return [axis for axis in found if not (is_clear and axis[0] == "decoding")]


def distinguishing(rows: Sequence[Row]) -> Callable[[Cell], str]:
    """A function that names a cell's engine and scenario where `rows` differ in them."""
    shown = [axis for axis in varying(rows) if axis[0] in ("engine", "scenario")]
    return lambda cell: "".join(f", {name} {write(cell)}" for name, write in shown)


def number(value: float | None, digits: int = 2) -> str:
    """A plain number, `-` where it is not known."""
    return UNKNOWN if value is None or not math.isfinite(value) else f"{value:.{digits}f}"


def series(values: Sequence[float], digits: int = 2) -> str:
    """Several numbers; `-` where there is none."""
    return " ".join(number(value, digits) for value in values) or UNKNOWN


def mebibytes(num_bytes: int | None) -> str:
    """A size in MiB."""
    return UNKNOWN if num_bytes is None else f"{num_bytes / 2**20:.0f}"


def percent(value: float | None) -> str:
    """A share in per cent."""
    return UNKNOWN if value is None or not math.isfinite(value) else f"{100 * value:.1f} %"


def times(value: float | None) -> str:
    """A ratio, as in 1.52x."""
    written = number(value)
    return written if written == UNKNOWN else f"{written}x"


def interval(ends: tuple[float, float] | None, digits: int = 2) -> str:
    """The ends of a confidence interval with a space before it; nothing where there is none."""
    return f" [{ends[0]:.{digits}f}, {ends[1]:.{digits}f}]" if ends else ""


def speedup(row: Row) -> str:
    """Speedup over vanilla; vanilla itself shows how well it repeats itself, the A/A floor."""
    if row.method != BASELINE:
        return times(row.speedup) + interval(row.speedup_ci)
    if not math.isfinite(row.aa_floor):
        return times(row.speedup)
    return f"{times(row.speedup)} ±{row.aa_floor:.2f} A/A"


def speedup_vs(row: Row, rung: str) -> str:
    """Speedup over a rung of the ladder."""
    if rung == row.method:
        return times(row.speedup_vs.get(rung))
    return times(row.speedup_vs.get(rung)) + interval(row.speedup_vs_ci.get(rung))


def tau(row: Row) -> str:
    """Acceptance length. Vanilla's is 1 by definition and has no interval."""
    return number(row.tau) + ("" if row.method == BASELINE else interval(row.tau_ci))


def per_thousand(rate: float | None) -> str:
    """A rate per token as a number per 1,000 tokens."""
    return number(None if rate is None else 1000 * rate)


def failure(stored: Failure) -> str:
    """One line of what stopped a run."""
    message = " ".join(stored.message.split())
    if len(message) > _LONGEST_MESSAGE:
        message = f"{message[: _LONGEST_MESSAGE - 3]}..."
    return f"{stored.kind} in {stored.where}: {message}"


def method(row: Row) -> str:
    """The method's name, with the letter of its footnote."""
    return f"{row.method} [{row.variant}]" if row.variant else row.method


CAUSES = {
    "others": "others used {} of the machine",
    "steal": "other virtual machines took {}",
    "quota": "held back by a quota for {} of the time",
    "bandwidth": "{} of the read bandwidth was missing",
    "gpu_others": "others used {} of the GPU",
    "gpu_slowed": "heat or power slowed the GPU at {} of the looks",
}
"""What disturbed a measurement, by the names in `BlockLoad.causes`."""


def _rounded(share: float) -> str:
    """A share in whole per cent."""
    return f"{100 * share:.0f} %"


def causes(shares: Mapping[str, float]) -> str:
    """What disturbed a measurement, the worst first."""
    ordered = sorted(shares.items(), key=lambda item: -item[1])
    return "; ".join(CAUSES.get(name, f"{name}: {{}}").format(_rounded(share)) for name, share in ordered)


def disturbed(row: Row) -> str:
    """The mark of a row whose times others may explain."""
    return f"disturbed for {_rounded(row.disturbed_share)} of the time ({causes(row.disturbances)})"


NARROW_SCOPES = ("round", "call", "conversation")
"""Scopes of memory that tables need not mention; stores written before these words say `conversation`."""


def marks(row: Row) -> str:
    """Everything that a reader must know before believing the numbers."""
    if row.failed:
        reasons = "; ".join(dict.fromkeys(map(failure, row.failures)))
        return f"FAILED: {reasons}" if reasons else "not measured"
    found = [
        ("quick", row.where.profile == "quick"),
        ("indicative", row.indicative),
        ("forced length", row.forced_length),
        (f"scope: {row.scope}", row.scope not in NARROW_SCOPES),
        ("lossy", row.verdict == "lossy"),
        ("forced", row.verdict == "forced"),
        ("unexplained differences", row.verdict == "unexplained"),
        (f"looped {percent(row.looping_share)}", row.looped),
        (f"contaminated: {row.contaminated} of {row.num_prompts}", bool(row.contaminated)),
        ("partial", row.partial),
        ("clock over 1 % of a round", row.clock_heavy),
        (disturbed(row), row.disturbed),
        ("not distinguishable", row.difference == "not distinguishable"),
        ("; ".join(f"FAILED: {failure(one)}" for one in dict.fromkeys(row.failures)), bool(row.failures)),
    ]
    return ", ".join(mark for mark, holds in found if holds)


def strike(cells: Sequence[str]) -> list[str]:
    """The cells of a broken row, crossed out as Markdown does it."""
    return [f"~~{cell}~~" if cell and cell != UNKNOWN else cell for cell in cells]


def escape(text: str) -> str:
    """Text that means itself in a Markdown table: no HTML, image, link or address that becomes a link.

    `~~` stays, as it strikes out; so do brackets that make no link, such as those of intervals.
    """
    for sign in ("\\", "|", "*", "_", "<", "`"):
        text = text.replace(sign, f"\\{sign}")
    text = re.sub(r"\](?=\s*[(\[:])", r"\\]", " ".join(text.split()))
    text = re.sub(r"&(?=#?\w+;)", r"\\&", text)
    return re.sub(r"(?<=\w)(?=://)|(?<=\bwww)(?=\.)", r"\\", text, flags=re.IGNORECASE)
