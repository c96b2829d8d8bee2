"""The contents that every tracker sends of a run: one log per arm, as plain values."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from harness.analysis.comparability import variants
from harness.analysis.row import Row, to_json
from harness.analysis.summary import pairwise
from harness.reports import page
from harness.reports.formatting import marks
from harness.store.records import BASELINE, Cell, GenerationRecord, Run
from harness.system.naming import slug
from harness.system.secrets import redact

PAGE_SHOWN = 100_000
"""Most tokens of answers and nodes of trees in the page of one run: about 1 MB, plus 0.6 MB of scripts."""
_PLACE = ("conversation", "category", "turn", "sample", "repeat")
_HISTORY = ("tokens", "rounds", "tau", "seconds")
_COLUMNS = (*_PLACE, *_HISTORY, "verdict")
_OF_NO_SETTING = ("_target_", "card", "scope")
_LONGEST_NAME = 128


class Table(NamedTuple):
    """Rows under named columns."""

    columns: tuple[str, ...]
    rows: list[list[Any]]


class Chart(NamedTuple):
    """A table to draw: the first column is the axis, the second the height, a third names the line."""

    kind: Literal["bar", "line"]
    title: str
    table: Table


class Picture(NamedTuple):
    """An image file."""

    path: Path


class Page(NamedTuple):
    """A self-contained HTML document."""

    html: str


Shown = Table | Chart | Picture | Page


@dataclass(frozen=True, kw_only=True)
class ArmLog:
    """Everything that is logged of one arm of one stored run, in a fixed order; it follows from the store."""

    id: str
    """The tracker's id for this arm, the same whenever it is sent."""
    name: str
    group: str
    """Name of the cell, shared by arms of all runs that may be compared."""
    job_type: str
    tags: tuple[str, ...]
    config: dict[str, Any]
    """Columns to filter and group by."""
    history: list[dict[str, float]]
    """One point per generation."""
    numbers: dict[str, Any]
    """One value per name; the names do not change between versions."""
    shown: dict[str, Shown]
    """Charts and tables; in the leading log, also those of the whole run."""
    leads: bool
    """Whether this log carries what belongs to the whole run."""


def group_of(cell: Cell) -> str:
    """The name of a cell, which all comparable runs share, whatever command made them."""
    names = [slug(name) for name in (cell.target, cell.task, cell.decoding)]
    setting = [f"T{cell.temperature:g}", f"b{cell.batch_size}", cell.profile, cell.baseline, cell.acceptor]
    # Defaults are left out, so that groups of runs from before these axes existed keep their names.
    later = [getattr(cell, name) for name in ("engine", "scenario")]
    setting += [value for value in later if value not in (Cell.engine, Cell.scenario)]
    return clean(".".join([*names, *setting]))


def log_id(run: Run, arm: str) -> str:
    """The id of this arm of this run in a tracker."""
    return clean(f"{run.manifest.run_id}-{arm}")


def log_name(run: Run, arm: str) -> str:
    """The display name of this arm of this run: the method comes first, because legends are narrow."""
    return f"{arm} {run.manifest.run_id}"


def clean(text: str) -> str:
    """`text` in the characters that trackers allow in ids and names, the last 128 of them."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", text)[-_LONGEST_NAME:]


def arm_log(run: Run, arm: str, rows: Sequence[Row], files: Sequence[Path], tables: bool = True) -> ArmLog:
    """The log of `arm`.

    rows: those of `run`. files: its figures, of which the leading log shows the images. tables: whether to
    include the tables with one line per generation, and the page.
    """
    cell, row = run.manifest.cell, next(row for row in rows if row.method == arm and row.kind == "arm")
    leads = arm == leader(run)
    measured = [_values(record) for record in run.records if record.arm == arm]
    shown: dict[str, Shown] = dict(_charts(row))
    if tables:
        shown["prompts"] = Table(_COLUMNS, [[values[key] for key in _COLUMNS] for values in measured])
    if leads:
        shown |= _of_the_run(run, rows, files, tables)
    return ArmLog(
        id=log_id(run, arm),
        name=log_name(run, arm),
        group=group_of(cell),
        job_type=arm,
        tags=_tags(row),
        config=_config(run, arm),
        history=[
            {
                "prompt/number": number,
                **{f"prompt/{key}": values[key] for key in _HISTORY if values[key] is not None},
            }
            for number, values in enumerate(measured)
        ],
        numbers=_numbers(row),
        shown=shown,
        leads=leads,
    )


def leader(run: Run) -> str:
    """The arm whose log carries what belongs to the whole run, so that this is sent only once."""
    arms = run.manifest.arms
    return BASELINE if BASELINE in arms else next(iter(arms))


def _config(run: Run, arm: str) -> dict[str, Any]:
    """Columns to filter by. `settings` are the method's own, `resolved` is the whole configuration."""
    manifest = run.manifest
    decoding = manifest.config.get("decoding") or {}
    device = manifest.provenance.get("device") or {}
    settings = {key: value for key, value in manifest.arms[arm].items() if key not in _OF_NO_SETTING}
    found: dict[str, Any] = redact(
        {
            "run": manifest.run_id,
            "method": arm,
            **vars(manifest.cell),
            "max_new_tokens": decoding.get("max_new_tokens"),
            "replicate": manifest.replicate,
            "created": manifest.created,
            "overrides": " ".join(manifest.overrides),
            "device": device.get("name"),
            "commit": (manifest.provenance.get("git") or {}).get("commit"),
            "settings": settings,
            "resolved": manifest.config,
        }
    )
    return found


def _tags(row: Row) -> tuple[str, ...]:
    tags = [
        row.where.profile,
        row.where.baseline,
        f"T={row.where.temperature:g}",
        row.where.acceptor,
        row.verdict or "no verdict",
    ]
    return tuple(dict.fromkeys([*tags, *(["indicative"] if row.indicative else [])]))


def _numbers(row: Row) -> dict[str, Any]:
    """The numbers of the JSON line as scalars by name: an interval becomes NAME_low and NAME_high."""
    found: dict[str, Any] = {}
    for key, value in to_json(row).items():
        if key in (*vars(row.where), "method", "variant"):
            continue
        if isinstance(value, Mapping):
            # W&B would read a dot as a level of nesting.
            found |= {f"{key}/{name.replace('.', '_')}": ratio for name, ratio in value.items()}
        elif isinstance(value, list):
            found |= dict(zip((f"{key}_low", f"{key}_high"), value, strict=True))
        else:
            found[key] = value
    return {key: value for key, value in found.items() if value is not None}


def _charts(row: Row) -> dict[str, Chart]:
    """The charts of one arm. A tracker draws one panel of the charts that share a key in several logs."""
    found: dict[str, Chart] = {}
    ledger = row.ledger
    if ledger and ledger.conditional:
        shares = [[str(kept), count / ledger.num_rounds] for kept, count in enumerate(ledger.histogram)]
        found["charts/kept"] = Chart(
            "bar", "Drafted tokens kept in a round", Table(("kept", "share"), shares)
        )
        curves = [
            [position, value, name]
            for name, values in (("if all before it were", ledger.conditional), ("at all", ledger.joint))
            for position, value in enumerate(values, 1)
        ]
        table = Table(("position", "share kept", "counted"), curves)
        found["charts/acceptance"] = Chart("line", "How often the token at a position is kept", table)
    if row.split:
        parts = Table(("part", "share"), [[name, share] for name, share in row.split.items()])
        found["charts/time"] = Chart("bar", "Where the time of a round goes", parts)
    return found


def _of_the_run(run: Run, rows: Sequence[Row], files: Sequence[Path], tables: bool) -> dict[str, Shown]:
    """Charts, tables and the page that compare the methods of the run, rungs included."""
    found: dict[str, Shown] = {}
    for key, title in (("speedup", "Speedup over vanilla"), ("tokens_per_s", "Tokens per second")):
        bars = [[row.method, value] for row in rows if (value := to_json(row)[key]) is not None]
        if bars:
            found[f"charts/{key}"] = Chart("bar", title, Table(("method", key), bars))
    found["methods"] = _methods(rows)
    pairs = pairwise(run)
    if pairs:
        found["pairs"] = Table(
            ("method", "against", "ratio", "low", "high", "which is"),
            [[pair.over, pair.under, *pair.ratio, pair.difference] for pair in pairs],
        )
    found |= {f"figures/{path.stem}": Picture(path) for path in files if path.suffix == ".png"}
    if tables:
        found["report"] = Page(page.document(rows, pairs, [run], variants([run])[1], PAGE_SHOWN))
    return found


def _methods(rows: Sequence[Row]) -> Table:
    """The table with one line per method."""
    columns = ("method", "tokens_per_s", "speedup", "speedup_low", "speedup_high", "tau", "verdict", "marks")
    body = []
    for row in rows:
        known = to_json(row)
        low, high = known["speedup_ci"] or (None, None)
        numbers = [known["tokens_per_s"], known["speedup"], low, high, known["tau"]]
        body.append([row.method, *numbers, row.verdict, marks(row)])
    return Table(columns, body)


def _values(record: GenerationRecord) -> dict[str, Any]:
    """The line of a record in the per-prompt table; None where the record lacks the number."""
    rounds = len(record.emitted)
    return {
        **{key: getattr(record, key) for key in _PLACE},
        "tokens": len(record.output_ids),
        "rounds": None if record.kind == "roundless" else rounds,
        "tau": sum(record.emitted) / rounds if rounds else None,
        "seconds": record.total_ns * 1e-9 if record.timed else None,
        "verdict": record.verdict.kind if record.verdict else None,
    }
