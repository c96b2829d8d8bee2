"""CSV: the numbers of the tables, unrounded."""

from __future__ import annotations

import csv as csv_format
import dataclasses
import io
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from harness.analysis.row import Pair, Row
from harness.analysis.serving.latencies import Percentiles, Serving
from harness.reports import formatting

_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "|", "%", "\uff1d", "\uff0b", "\uff0d", "\uff20")
"""Signs with which a text becomes a formula in some spreadsheet, full-width forms among them."""
_SKIPPED = " \"'"
"""Signs that some spreadsheets skip at the beginning."""


def csv(rows: Sequence[Row]) -> str:
    """Every raw number of every row; an empty cell where it is not known."""
    return csv_of([_line(row) for row in rows])


def _line(row: Row) -> dict[str, Any]:
    """The cell and the method first, then every number."""
    where, own = dataclasses.asdict(row.where), dataclasses.asdict(row)
    # The calls are lines of a table of their own; see `harness.reports.by_call`.
    del own["where"], own["calls"]
    own["serving"] = {
        name: value._asdict() if isinstance(value, Percentiles) else value
        for name, value in vars(row.serving or Serving()).items()
    }
    first = {"target": where.pop("target"), "task": where.pop("task"), "method": own.pop("method")}
    return flat({**first, **where, **own, "failed": row.failed})


def pairs_csv(pairs: Sequence[Pair]) -> str:
    """Every pair of methods with its raw numbers."""
    return csv_of(
        [
            {
                **{name: write(pair.row.where) for name, write in formatting.AXES},
                "variant": pair.row.variant,
                "over": pair.over,
                "under": pair.under,
                "ratio": pair.ratio.value,
                "ratio_low": pair.ratio.low,
                "ratio_high": pair.ratio.high,
                "difference": pair.difference,
                "broken": pair.broken,
            }
            for pair in pairs
        ]
    )


def csv_of(lines: Sequence[Mapping[str, Any]]) -> str:
    """Lines that may lack some of the columns; an empty cell for what is not known."""
    names = dict.fromkeys(name for line in lines for name in line)
    text = io.StringIO()
    writer = csv_format.DictWriter(text, list(names), restval="", lineterminator="\n")
    writer.writerow({name: _inert(name) for name in names})
    for line in lines:
        writer.writerow({name: _raw(value) for name, value in line.items()})
    return text.getvalue()


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested fields as `parent.child`, intervals as `_low` and `_high`, lists as JSON."""
    result: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            result |= flat(value, f"{name}.")
        elif prefix.startswith("speedup_vs_ci") or key.endswith("_ci"):
            result[f"{name}_low"], result[f"{name}_high"] = value or ("", "")
        elif key == "failures":
            result[name] = "; ".join(formatting.failure(one) for one in value)
        elif isinstance(value, (tuple, list)):
            result[name] = json.dumps(
                [None if isinstance(one, float) and math.isnan(one) else one for one in value]
            )
        elif key not in ("ties", "ledger"):
            result[name] = value
    return result


def _raw(value: Any) -> Any:
    if isinstance(value, str):
        return _inert(value)
    return "" if value is None or (isinstance(value, float) and not math.isfinite(value)) else value


def _inert(text: str) -> str:
    """`text` so that a spreadsheet shows it and does not take it for a formula."""
    return f"'{text}" if text.lstrip(_SKIPPED)[:1] in _FORMULA and text else text
