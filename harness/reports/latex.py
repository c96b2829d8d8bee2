r"""LaTeX tables in the papers' layout; they need the packages booktabs, longtable and siunitx.

Each target has one table, with methods down and tasks across. Speedup and acceptance length stand side by
side, aligned at their decimal points, and each temperature has a block of lines. If the tasks exceed the
width of a page, they are spread over several tables; if the lines exceed its height, the table continues on
the next page.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Callable, Iterator, Sequence

from harness.analysis.row import Row
from harness.reports import formatting
from harness.store.records import BASELINE, Cell

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
    "±": r"$\pm$",
    "\x7f": "?",
}
_BROKEN, _LOSSY, _FORCED = r"\dagger", r"\ddagger", r"\sharp"
_FAILED, _PARTIAL, _FEW, _DISTURBED = r"\ast", r"\circ", r"\diamond", r"\wr"
_CONTAMINATED = r"\flat"
_MEANINGS = (
    (_BROKEN, "broken: the output is not vanilla's and rounding does not explain it; not a result"),
    (_LOSSY, "lossy: the acceptor does not claim vanilla's output; never printed bold"),
    (_FORCED, "forced: how many tokens are kept was given, not found; the work of a round, not a method"),
    (_FAILED, "failed: "),
    (_CONTAMINATED, "contaminated: prompts share 13 words with those that the head was trained on: "),
    (_PARTIAL, "partial: a run of this row did not end"),
    (_FEW, "indicative: under 12 conversations"),
    (_DISTURBED, "what disturbed the machine may explain a part of the time: "),
)
_SIZE = (
    r"\centering\small\setlength{\tabcolsep}{4pt}\renewcommand{\arraystretch}{1.3}"
    r"\setlength{\belowcaptionskip}{4pt}\sisetup{detect-weight,table-align-text-post=false}"
)
Value = Callable[[Row], float]
Spread = Callable[[Row], tuple[str, str]]
Gains = Callable[[Row], bool]


def _speedup_spread(row: Row) -> tuple[str, str]:
    """Vanilla over itself is 1: only how well its repeats agree means something."""
    if row.method == BASELINE:
        return (rf"\pm{row.aa_floor:.2f}", "") if math.isfinite(row.aa_floor) else ("", "")
    return _ends(row.speedup, row.speedup_ci)


def _ends(value: float, interval: tuple[float, float] | None) -> tuple[str, str]:
    if interval is None or interval[0] == interval[1] == value:
        return "", ""
    return f"{interval[0]:.2f}", f"{interval[1]:.2f}"


_COLUMNS: tuple[tuple[Value, Spread, Gains], ...] = (
    (lambda row: row.speedup, _speedup_spread, lambda row: row.difference == "faster"),
    (
        lambda row: row.tau,
        lambda row: _ends(row.tau, row.tau_ci),
        lambda row: row.tau_ci is not None and row.tau_ci[0] > 1,
    ),
)
"""Value, what stands below and above it, whether it is distinguishable from vanilla's, to the better."""


PREAMBLE = r"\usepackage{booktabs,longtable,siunitx}"
_LAST_LATIN = "\u017f"
"""The last letter that every LaTeX can typeset."""
_MAX_HEADS = 3
"""Tasks across the width of a page, the mean among them."""
_MAX_LINES = 36
"""Lines down a page."""


def latex(rows: Sequence[Row], notes: Sequence[str] = ()) -> str:
    r"""A `table` float (or a `longtable`) a target and setting, to be read with `\input`.

    Ends of the 95 % intervals stand small, below and above; below vanilla's speedup, half the width of that
    between its own repeats (A/A). The best of a column within a temperature is bold, among what is lossless,
    where it is distinguishable from vanilla.
    """
    distinguish = formatting.distinguishing(rows)
    groups: dict[tuple[object, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(row.setting, []).append(row)
    head = f"% Needs {PREAMBLE}. Written by `python -m harness.report build`; edits are lost.\n"
    body = "\n".join(table for group in groups.values() for table in _tables(group, notes, distinguish))
    if any(sign > _LAST_LATIN for sign in body):
        head += "% Holds letters beyond Latin: compile with LuaLaTeX or XeLaTeX and a font that has them.\n"
    return head + body


def escape(text: str) -> str:
    """Text that means itself in LaTeX, on one line; letters of all scripts stay, other signs become `?`."""
    # Two passes would escape the escapes.
    return "".join(_ESCAPES.get(sign) or _plain(sign) for sign in " ".join(text.split()))


def _plain(sign: str) -> str:
    # Letters, the marks on them, and digits.
    return sign if sign.isascii() or unicodedata.category(sign)[0] in "LMN" else "?"


def _tables(rows: Sequence[Row], notes: Sequence[str], distinguish: Callable[[Cell], str]) -> Iterator[str]:
    """The tables of one setting: its tasks, a few at a time, and at the end their mean (None)."""
    tasks: list[str | None] = list(dict.fromkeys(row.where.task for row in rows))
    heads = [*tasks, *[None] * (len(tasks) > 1)]
    parts = [heads[i : i + _MAX_HEADS] for i in range(0, len(heads), _MAX_HEADS)]
    for number, part in enumerate(parts, start=1):
        caption = _caption(rows[0], distinguish) + (f" Part {number} of {len(parts)}." if parts[1:] else "")
        yield _table(rows, part, caption, notes if part is parts[-1] else ())


def _table(rows: Sequence[Row], heads: Sequence[str | None], caption: str, notes: Sequence[str]) -> str:
    """heads: tasks; None stands for their mean."""
    num_columns = 1 + 2 * len(heads)
    body = _body(rows, heads, num_columns)
    names = " & ".join(rf"\multicolumn{{2}}{{c}}{{{escape(head) if head else 'Mean'}}}" for head in heads)
    rules = " ".join(rf"\cmidrule(lr){{{2 * i}-{2 * i + 1}}}" for i in range(1, len(heads) + 1))
    top = [
        r"\toprule",
        rf" & {names} \\",
        rules,
        "Method" + r" & {Speedup} & {$\tau$}" * len(heads) + r" \\",
    ]
    columns = rf"{{@{{}}l*{{{2 * len(heads)}}}{{{_column(rows)}}}@{{}}}}"
    footnotes = _footnotes(rows, notes)
    if len(body) <= _MAX_LINES:
        lines = [
            r"\begin{table}[t]",
            _SIZE,
            rf"\caption{{{caption}}}",
            rf"\begin{{tabular}}{columns}",
            *top,
            *body,
            *(r"\bottomrule", r"\end{tabular}", *footnotes, r"\end{table}", ""),
        ]
    else:
        continued = rf"\multicolumn{{{num_columns}}}{{r}}{{\footnotesize continued on the next page}} \\"
        lines = [
            rf"\begingroup{_SIZE}\setlength{{\LTcapwidth}}{{\textwidth}}",
            rf"\begin{{longtable}}{columns}",
            rf"\caption{{{caption}}} \\",
            *(
                *top,
                r"\endfirsthead",
                *top,
                r"\endhead",
                continued,
                r"\endfoot",
                r"\bottomrule",
                r"\endlastfoot",
            ),
            *body,
            *(r"\end{longtable}", *footnotes, r"\endgroup", ""),
        ]
    return "\n".join(lines)


def _column(rows: Sequence[Row]) -> str:
    """Numbers aligned at their points, with room behind them for an interval and signs."""
    values = [value(row) for row in rows for value, *_ in _COLUMNS]
    digits = max((len(str(int(one))) for one in values if math.isfinite(one)), default=1)
    end, signs = "0" * digits + ".00", max(("".join(_signs(row)) for row in rows), key=len)
    raised = rf"{end}\,{signs}" if signs else end
    return f"S[table-format={digits}.2,table-space-text-post={{$_{{{end}}}^{{{raised}}}$}}]"


def _body(rows: Sequence[Row], heads: Sequence[str | None], num_columns: int) -> list[str]:
    """A block of lines a temperature."""
    lines: list[str] = []
    decodings = list(dict.fromkeys((row.where.temperature, row.where.decoding) for row in rows))
    for temperature, decoding in decodings:
        block = [
            row for row in rows if (row.where.temperature, row.where.decoding) == (temperature, decoding)
        ]
        ambiguous = sum(other == temperature for other, _ in decodings) > 1
        title = rf"Temperature $= {temperature:g}$" + (f" ({escape(decoding)})" if ambiguous else "")
        lines += [r"\midrule", rf"\multicolumn{{{num_columns}}}{{c}}{{{title}}} \\", r"\midrule"]
        lines += _block(block, heads, list(dict.fromkeys(row.where.task for row in rows)))
    return lines


def _caption(row: Row, distinguish: Callable[[Cell], str]) -> str:
    at = row.where
    return (
        f"{escape(at.target)}, batch size {at.batch_size}, profile {escape(at.profile)}, "
        f"{escape(at.baseline)} baseline, {escape(at.acceptor)} acceptor{escape(distinguish(at))}. "
        r"Speedup over vanilla and tokens a round $\tau$, with the ends of their 95\,\% intervals"
        r" (of vanilla's speedup: half the width of that between its own repeats, A/A)."
    )


def _block(rows: Sequence[Row], heads: Sequence[str | None], tasks: Sequence[str]) -> list[str]:
    """The lines of one temperature. tasks: all of them, for the mean."""
    by_place = {(formatting.method(row), row.where.task): row for row in rows}
    best: dict[tuple[str | None, int], float] = {}
    for task in heads:
        for column, (value, *_) in enumerate(_COLUMNS):
            known = [value(row) for row in rows if row.where.task == task and _may_win(row)]
            best[task, column] = max((one for one in known if not math.isnan(one)), default=math.nan)
    lines = []
    for method in dict.fromkeys(map(formatting.method, rows)):
        line = [escape(method)]
        for head in heads:
            if head is None:
                found = [row for task in tasks if (row := by_place.get((method, task)))]
                line += [_mean(found, value, len(tasks)) for value, *_ in _COLUMNS]
            else:
                row = by_place.get((method, head))
                line += [
                    _cell(row, *functions, best[head, column]) for column, functions in enumerate(_COLUMNS)
                ]
        lines.append(" & ".join(line) + r" \\")
    return lines


def _may_win(row: Row) -> bool:
    return row.lossless and row.verdict != "broken"


def _cell(row: Row | None, value: Value, spread: Spread, gains: Gains, best: float) -> str:
    """What siunitx shall not read as a number stands in braces."""
    if row is None:
        return "{--}"
    signs = "".join(_signs(row))
    written = formatting.number(value(row))
    if written == formatting.UNKNOWN:
        return rf"{{--$^{{{signs}}}$}}" if signs else "{--}"
    if _may_win(row) and value(row) == best and gains(row):
        written = rf"\bfseries {written}"
    below, above = spread(row)
    lowered = f"_{{{below}}}" if below else ""
    raised = rf"\,{signs}" if above and signs else signs
    raised = f"^{{{above}{raised}}}" if above or signs else ""
    return f"{written}{{${lowered}{raised}$}}" if lowered or raised else written


def _mean(rows: Sequence[Row], value: Value, num_tasks: int) -> str:
    """Over the tasks; none where one is missing or is no result, as it would not compare."""
    values = [value(row) for row in rows if row.verdict != "broken"]
    if len(values) < num_tasks or not all(map(math.isfinite, values)):
        return "{--}"
    return f"{sum(values) / num_tasks:.2f}"


def _signs(row: Row) -> list[str]:
    """What must be known of the row, as signs."""
    if row.failed:
        return [_FAILED]
    signs = (
        (_BROKEN, row.verdict == "broken"),
        (_LOSSY, row.verdict == "lossy"),
        (_FORCED, row.verdict == "forced"),
        (_CONTAMINATED, bool(row.contaminated)),
        (_PARTIAL, row.partial),
        (_FEW, row.indicative),
        (_DISTURBED, row.disturbed),
    )
    return [sign for sign, holds in signs if holds]


def _qualities(rows: Sequence[Row]) -> list[str]:
    """How good the outputs are, where any may differ from vanilla's; columns would leave no room."""
    told = [
        f"{formatting.method(row)}, T = {row.where.temperature:g}, {row.where.task}:"
        f" {formatting.percent(row.quality.agreement)}, {formatting.number(row.quality.log_likelihood, 3)},"
        f" {formatting.percent(row.quality.score)}"
        for row in rows
        if row.quality
    ]
    meaning = "Agreement with plain decoding, log-likelihood per token in nats, score"
    return [f"{meaning}: {escape('; '.join(told))}."] if told else []


def _footnotes(rows: Sequence[Row], notes: Sequence[str]) -> list[str]:
    used = {sign for row in rows for sign in _signs(row)}
    reasons = {
        _FAILED: dict.fromkeys(formatting.failure(one) for row in rows if row.failed for one in row.failures),
        _CONTAMINATED: dict.fromkeys(
            f"{row.method}, {row.where.task}: {row.contaminated} of {row.num_prompts}"
            for row in rows
            if row.contaminated
        ),
        _DISTURBED: dict.fromkeys(formatting.disturbed(row) for row in rows if row.disturbed),
    }
    lines = []
    for sign, meaning in _MEANINGS:
        if sign in used:
            reason = escape("; ".join(reasons[sign]) or "no reason was recorded") if sign in reasons else ""
            lines.append(f"$^{{{sign}}}$ {escape(meaning)}{' ' if reason else ''}{reason}.")
    marks = [
        ("Profile quick: fewer prompts, tokens or repeats than the protocol asks for.", "quick"),
        ("Forced length: end tokens were ignored.", "forced length"),
    ]
    present = {mark for row in rows for mark in formatting.marks(row).split(", ")}
    lines += [text for text, mark in marks if mark in present]
    wide = [row for row in rows if row.scope not in formatting.NARROW_SCOPES]
    scopes = dict.fromkeys(f"{row.method}: {row.scope}" for row in wide)
    lines += [f"State is kept beyond a conversation: {escape('; '.join(scopes))}."] if scopes else []
    lines += [*_qualities(rows), *(escape(note) for note in notes)]
    # A paragraph per line, small, as wide as the text.
    return [rf"\par\smallskip{{\footnotesize {line}\par}}" for line in lines]
