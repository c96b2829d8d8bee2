"""Medians over the generations of a row, by name; a further one is an entry here and a column of a table."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from harness.store.columns import Columns

_VALUES: Mapping[str, Callable[[Columns], NDArray[np.float64]]] = {
    # See `Quantities.first_token_ns`.
    "first_token_s": lambda columns: np.asarray(columns.first_token_ns * 1e-9, np.float64),
}
"""Per name, the values [N] of the generations; those below 0 are not known."""


def medians(columns: Columns) -> dict[str, float]:
    """The median of every entry over the generations that know it; nan where none does."""
    found = {}
    for name, values_of in _VALUES.items():
        values = values_of(columns)
        known = values[values >= 0]
        found[name] = float(np.median(known)) if len(known) else math.nan
    return found
