"""The cost table that drafters of a run weigh, if one was measured for this target on this device."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from harness.config import ConfigError
from harness.costs.table import COSTS, CostTable, identity, load_tables
from harness.system import provenance


def known_costs(
    results: Path,
    name: str,
    card: Mapping[str, Any],
    device: Mapping[str, Any],
    batch_size: int,
    note: Callable[[str], None],
) -> CostTable | None:
    """The table below `results` that was measured for this target, device and software, for this batch.

    name: the target's. card: of the loaded target. device: from `provenance.device_facts`. None: there is no
    such table, and the engine measures the costs itself. Either is noted, and why a table of the same name
    does not serve.

    Raises:
        ConfigError: a file that is no cost table.
    """
    wanted = identity(card, device, provenance.packages())
    for table in load_tables(results):
        try:
            table.expect(wanted)
        except ConfigError as error:
            if table.name == name:
                note(str(error))
            continue
        if not table.forward.covers(batch=batch_size, context=0, tokens=1):
            batches = table.forward.axes["batch"]
            note(f"cost table {table.file}: has batches {batches[0]} to {batches[-1]}, not {batch_size}")
            continue
        note(f"what a token costs: as measured in {table.file} ({table.made.get('created')})")
        return table
    note(
        f"what a token costs: no table in {results / COSTS} serves, so it is measured before the run; keep it"
        f" with python -m harness.cost target={name}"
    )
    return None
