"""Replication: per paper its numbers beside ours for the cells that both have. They are never mixed.

What can be carried from one harness to another is a ratio inside each: every line has one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from harness.analysis.published import Paper, Place, Value
from harness.analysis.row import Row
from harness.reports import formatting
from harness.store.records import Run, RunManifest

_HEADERS = (
    *(
        "target",
        "task",
        "T",
        "method",
        "their speedup",
        "our speedup",
        "our mean of rates",
        "their tau",
        "our tau",
        "ours as EAGLE",
    ),
    *("their ratio", "our ratio", "marks", "what differs"),
)
_LEFT = ("target", "task", "method", "marks", "what differs")
_PLAIN = ("multi_turn", "single")
"""The scenarios of papers that do not speak of any."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """One method of one cell, with the numbers of a paper and ours.

    Ratios are speedups over that of the paper's reference in the same cell of the same harness, or nan if
    there is none.
    """

    place: Place
    row: Row
    theirs: Value
    their_ratio: float
    our_ratio: float
    replication: bool
    """Whether the target and the head, if there is one, have the weights that their makers published."""
    marks: list[str]
    differs: list[str]


def replicate(paper: Paper, rows: Sequence[Row], runs: Sequence[Run]) -> list[Line]:
    """The lines of `paper` for what is in `rows`, whose runs are `runs`; a broken row is no result."""
    lines = []
    for place, values in paper.cells.items():
        own = [row for row in rows if _is_at(row, place) and not row.failed and row.verdict != "broken"]
        for row in own:
            manifest = _manifest(row, runs)
            theirs = values.get(row.method)
            if theirs is None or manifest is None:
                continue
            our_reference = next((o for o in own if o.method == paper.reference and _same_cell(o, row)), None)
            their_reference = values.get(paper.reference)
            lines.append(
                Line(
                    place=place,
                    row=row,
                    theirs=theirs,
                    their_ratio=_ratio(theirs, their_reference),
                    our_ratio=_ratio(row, our_reference),
                    replication=_is_official(manifest, row.method),
                    marks=_marks(manifest, row),
                    differs=_differs(paper, place, row, manifest),
                )
            )
    return lines


def markdown(papers: Sequence[Paper], rows: Sequence[Row], runs: Sequence[Run]) -> str:
    """A section a paper that shares a cell with us, with its source and cautions; "" where none does."""
    parts: list[str] = []
    for paper in papers:
        lines = replicate(paper, rows, runs)
        if not lines:
            continue
        stated = (
            ", ".join(f"{name} {value}" for name, value in paper.setting.items()) or "nothing that is known"
        )
        parts += [
            f"## {formatting.escape(paper.title)}",
            "",
            f"{formatting.escape(paper.source)}. It states: {formatting.escape(stated)}. Ratios are"
            f" to {formatting.escape(paper.reference)}.",
            "",
        ]
        parts += [f"* {formatting.escape(caution)}" for caution in paper.cautions]
        marks = [":--" if name in _LEFT else "--:" for name in _HEADERS]
        body = [[formatting.escape(cell) for cell in _written(line)] for line in lines]
        parts += ["", *(f"| {' | '.join(line)} |" for line in (_HEADERS, marks, *body)), ""]
    intro = (
        "Published numbers beside ours, as printed, each with its own baseline, machine and counting.\n"
        "Compare ratios inside a harness, not columns. `replication`: target and head are their makers'."
    )
    return "\n".join(["# Published beside measured", "", intro, "", *parts]) if parts else ""


def table(papers: Sequence[Paper], rows: Sequence[Row], runs: Sequence[Run]) -> list[dict[str, Any]]:
    """All lines with raw numbers, for CSV; nan is not known."""
    return [
        {
            "paper": paper.title,
            "source": paper.source,
            **line.place._asdict(),
            "method": line.row.method,
            "their_method": line.theirs.method,
            "their_speedup": _known(line.theirs.speedup),
            "our_speedup": line.row.speedup,
            "our_speedup_mean_of_rates": line.row.speedup_mean_of_rates,
            "their_tau": _known(line.theirs.tau),
            "our_tau": line.row.tau,
            "our_tau_as_eagle": _as_eagle(line.row),
            "their_ratio": line.their_ratio,
            "our_ratio": line.our_ratio,
            "replication": line.replication,
            "marks": "; ".join(line.marks),
            "differs": "; ".join(line.differs),
        }
        for paper in papers
        for line in replicate(paper, rows, runs)
    ]


def _written(line: Line) -> list[str]:
    row, theirs = line.row, line.theirs
    return [
        row.where.target,
        row.where.task,
        f"{row.where.temperature:g}",
        f"{formatting.method(row)} ({theirs.method})",
        formatting.times(theirs.speedup),
        formatting.speedup(row),
        formatting.times(row.speedup_mean_of_rates),
        formatting.number(theirs.tau),
        formatting.tau(row),
        formatting.number(_as_eagle(row)),
        formatting.number(line.their_ratio),
        formatting.number(line.our_ratio),
        ", ".join(line.marks),
        "; ".join(line.differs),
    ]


def _is_at(row: Row, place: Place) -> bool:
    here, there = ((at.target, at.task, at.temperature, at.batch_size) for at in (row.where, place))
    return here == there and row.where.scenario in ((place.scenario,) if place.scenario else _PLAIN)


def _same_cell(one: Row, other: Row) -> bool:
    return (one.where, one.variant) == (other.where, other.variant)


def _manifest(row: Row, runs: Sequence[Run]) -> RunManifest | None:
    """Manifest of the first run that the row was made from; None if there is none."""
    for run in runs:
        if run.manifest.cell == row.where and row.method in run.manifest.arms:
            return run.manifest
    return None


def _ratio(one: Row | Value, reference: Row | Value | None) -> float:
    over, under = one.speedup, reference.speedup if reference else None
    return math.nan if over is None or under is None else over / under


def _known(value: float | None) -> float:
    return math.nan if value is None else value


def _as_eagle(row: Row) -> float:
    return row.ledger.as_eagle if row.ledger else math.nan


def _is_official(manifest: RunManifest, method: str) -> bool:
    card = manifest.arms[method].get("card")
    official = card is None or (card.get("known") or {}).get("origin") == "official"
    return official and not str(manifest.target.get("source", "random")).startswith("random")


def _marks(manifest: RunManifest, row: Row) -> list[str]:
    if _is_official(manifest, row.method):
        found = ["replication"]
    elif str(manifest.target.get("source", "random")).startswith("random"):
        found = ["random target"]
    else:
        card = manifest.arms[row.method].get("card") or {}
        found = [f"{(card.get('known') or {}).get('origin') or 'unknown'} head"]
    marks = formatting.marks(row)
    return [*found, marks] if marks else found


def _differs(paper: Paper, place: Place, row: Row, manifest: RunManifest) -> list[str]:
    """Settings that are known on both sides and not the same, theirs first."""
    ours = {
        "dtype": manifest.target.get("dtype"),
        "max_new_tokens": (manifest.config.get("decoding") or {}).get("max_new_tokens"),
        "num_prompts": manifest.prompts.get("num_conversations"),
        "baseline": f"our {row.where.baseline} loop",
        "hardware": (manifest.provenance.get("device") or {}).get("name"),
        "tree": _tree(manifest.arms[row.method]),
    }
    card = manifest.arms[row.method].get("card") or {}
    theirs = {**paper.setting, "hardware": place.hardware, "tree": (card.get("known") or {}).get("settings")}
    return [
        f"{name}: {theirs[name]} / {value}"
        for name, value in ours.items()
        if value is not None and theirs.get(name) is not None and str(value) != str(theirs[name])
    ]


def _tree(arm: dict[str, Any]) -> str | None:
    tree = arm.get("tree") or {}
    names = ("total_token", "depth", "top_k")
    return (
        ", ".join(f"{name} {tree[name]}" for name in names) if all(name in tree for name in names) else None
    )
