r"""LaTeX: rows as the papers lay them out; needs the package booktabs and nothing else.

One table a target: methods down, tasks across, speedup and acceptance length side by side, and one block of
lines a temperature.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from harness import cells
from harness.rows import Row

_ESCAPES = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
}
_BROKEN, _LOSSY, _FORCED = r"\dagger", r"\ddagger", r"\sharp"
_FAILED, _PARTIAL, _FEW = r"\ast", r"\circ", r"\diamond"
_MEANINGS = (
    (_BROKEN, "broken: the output is not vanilla's and rounding does not explain it; not a result"),
    (_LOSSY, "lossy: the acceptor does not claim vanilla's output; never printed bold"),
    (_FORCED, "forced: how many tokens are kept was given, not found; the work of a round, not a method"),
    (_FAILED, "failed: "),
    (_PARTIAL, "partial: a run of this row did not end"),
    (_FEW, "indicative: under 12 conversations"),
)
Value = Callable[[Row], float]
Ends = Callable[[Row], tuple[float, float] | None]
Gains = Callable[[Row], bool]
_COLUMNS: tuple[tuple[Value, Ends, Gains], ...] = (
    (lambda row: row.speedup, lambda row: row.speedup_ci, lambda row: row.difference == "faster"),
    (lambda row: row.tau, lambda row: row.tau_ci, lambda row: row.tau_ci is not None and row.tau_ci[0] > 1),
)
"""Value, ends of its interval, whether it is distinguishable from vanilla's, to the better."""


def latex(rows: Sequence[Row], notes: Sequence[str] = ()) -> str:
    r"""One `table` float a target and setting, to be read with `\input`.

    Ends of the 95 % intervals stand small, below and above; of vanilla's speedup they are those of its own
    repeats against each other. The best of a column within a temperature is bold, among what is lossless,
    where it is distinguishable from vanilla.
    """
    groups: dict[tuple[object, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(row.setting, []).append(row)
    head = "% Needs \\usepackage{booktabs}. Written by `python -m harness.report build`; edits are lost.\n"
    return head + "\n".join(_table(group, notes) for group in groups.values())


def escape(text: str) -> str:
    """Text that means itself in LaTeX, on one line, in ASCII."""
    # Two passes would escape the escapes.
    line = "".join(_ESCAPES.get(sign, sign) for sign in " ".join(text.split()))
    return line.replace("±", r"$\pm$").encode("ascii", "replace").decode()


def _table(rows: Sequence[Row], notes: Sequence[str]) -> str:
    tasks = list(dict.fromkeys(row.task for row in rows))
    with_mean = len(tasks) > 1
    heads = [*map(escape, tasks), *["Mean"] * with_mean]
    num_columns = 1 + 2 * len(heads)
    spans = " & ".join(rf"\multicolumn{{2}}{{c}}{{{head}}}" for head in heads)
    rules = " ".join(rf"\cmidrule(lr){{{2 * i}-{2 * i + 1}}}" for i in range(1, len(heads) + 1))
    lines = [
        r"\begin{table}[t]",
        r"\centering\small\setlength{\tabcolsep}{4pt}",
        rf"\caption{{{_caption(rows[0])}}}",
        rf"\begin{{tabular}}{{@{{}}l{'rr' * len(heads)}@{{}}}}",
        r"\toprule",
        rf" & {spans} \\",
        rules,
        "Method" + r" & Speedup & $\tau$" * len(heads) + r" \\",
    ]
    decodings = list(dict.fromkeys((row.temperature, row.decoding) for row in rows))
    for temperature, decoding in decodings:
        block = [row for row in rows if (row.temperature, row.decoding) == (temperature, decoding)]
        ambiguous = sum(other == temperature for other, _ in decodings) > 1
        title = rf"Temperature $= {temperature:g}$" + (f" ({escape(decoding)})" if ambiguous else "")
        lines += [r"\midrule", rf"\multicolumn{{{num_columns}}}{{c}}{{{title}}} \\", r"\midrule"]
        lines += _block(block, tasks, with_mean)
    lines += [r"\bottomrule", r"\end{tabular}", *_footnotes(rows, notes), r"\end{table}", ""]
    return "\n".join(lines)


def _caption(row: Row) -> str:
    return (
        f"{escape(row.target)}, batch size {row.batch_size}, profile {escape(row.profile)}, "
        f"{escape(row.baseline)} baseline, {escape(row.acceptor)} acceptor. "
        r"Speedup over vanilla and tokens a round $\tau$, with the ends of their 95\,\% intervals."
    )


def _block(rows: Sequence[Row], tasks: Sequence[str], with_mean: bool) -> list[str]:
    """The lines of one temperature."""
    by_place = {(cells.method(row), row.task): row for row in rows}
    best: dict[tuple[str, int], float] = {}
    for task in tasks:
        for column, (value, *_) in enumerate(_COLUMNS):
            known = [value(row) for row in rows if row.task == task and _may_win(row)]
            best[task, column] = max((one for one in known if not math.isnan(one)), default=math.nan)
    lines = []
    for method in dict.fromkeys(map(cells.method, rows)):
        line = [escape(method)]
        for task in tasks:
            row = by_place.get((method, task))
            line += [_cell(row, *told, best[task, column]) for column, told in enumerate(_COLUMNS)]
        if with_mean:
            found = [row for task in tasks if (row := by_place.get((method, task)))]
            line += [_mean(found, value, len(tasks)) for value, *_ in _COLUMNS]
        lines.append(" & ".join(line) + r" \\")
    return lines


def _may_win(row: Row) -> bool:
    return row.lossless and row.verdict != "broken"


def _cell(row: Row | None, value: Value, ends: Ends, gains: Gains, best: float) -> str:
    if row is None:
        return "--"
    signs = "".join(_signs(row))
    written = cells.number(value(row))
    if written == cells.UNKNOWN:
        return rf"--$^{{{signs}}}$" if signs else "--"
    if _may_win(row) and value(row) == best and gains(row):
        written = rf"\mathbf{{{written}}}"
    interval, raised = ends(row), signs
    if interval and not (interval[0] == interval[1] == value(row)):
        written += f"_{{{interval[0]:.2f}}}"
        raised = f"{interval[1]:.2f}" + (rf"\,{signs}" if signs else "")
    return f"${written}^{{{raised}}}$" if raised else f"${written}$"


def _mean(rows: Sequence[Row], value: Value, num_tasks: int) -> str:
    """Over the tasks; none where one is missing or is no result, as it would not compare."""
    values = [value(row) for row in rows if row.verdict != "broken"]
    return (
        f"${sum(values) / num_tasks:.2f}$"
        if len(values) == num_tasks and all(map(math.isfinite, values))
        else "--"
    )


def _signs(row: Row) -> list[str]:
    """What must be known of the row, as signs."""
    if row.failed:
        return [_FAILED]
    told = (
        (_BROKEN, row.verdict == "broken"),
        (_LOSSY, row.verdict == "lossy"),
        (_FORCED, row.verdict == "forced"),
        (_PARTIAL, row.partial),
        (_FEW, row.indicative),
    )
    return [sign for sign, holds in told if holds]


def _footnotes(rows: Sequence[Row], notes: Sequence[str]) -> list[str]:
    used = {sign for row in rows for sign in _signs(row)}
    told = dict.fromkeys(cells.failure(one) for row in rows if row.failed for one in row.failures)
    lines = []
    for sign, meaning in _MEANINGS:
        if sign in used:
            reason = escape("; ".join(told) or "no reason was recorded") if sign == _FAILED else ""
            lines.append(f"$^{{{sign}}}$ {escape(meaning)}{' ' if reason else ''}{reason}.")
    marks = [
        ("Profile quick: fewer prompts, tokens or repeats than the protocol asks for.", "quick"),
        ("Forced length: end tokens were ignored.", "forced length"),
    ]
    present = {mark for row in rows for mark in cells.marks(row).split(", ")}
    lines += [text for text, mark in marks if mark in present]
    scopes = dict.fromkeys(f"{row.method}: {row.scope}" for row in rows if row.scope != "conversation")
    lines += [f"State is kept beyond a conversation: {escape('; '.join(scopes))}."] if scopes else []
    lines += [escape(note) for note in notes]
    # A paragraph per line, small, as wide as the text.
    return [rf"\par\smallskip{{\footnotesize {line}\par}}" for line in lines]
