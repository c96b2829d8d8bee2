"""Which blocks are measured again, and which of two measurements of a block counts."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

from harness.reports import formatting
from harness.store.journal import RunWriter
from harness.store.records import BlockLoad
from harness.system.console import Console

MAX_AGAIN_SHARE = 0.25
"""Share of a run's blocks that are measured again because they were disturbed, one block at least. On a
machine that is never quiet a larger share would only take longer; the rows carry the mark anyway."""
MAX_VOID_TRIES = 2
"""Further measurements of a block whose process was stopped each time, before the command gives up on it."""

Loads = Callable[[str], Sequence[BlockLoad]]
"""The loads of all measurements of a block, by its name."""


class ProcessStopped(RuntimeError):
    """The process was stopped during every measurement of a block."""


def void_blocks(names: Sequence[str], loads: Loads) -> list[str]:
    """The blocks that were measured, but never without a stop of the process: they must be measured again."""
    return [name for name in names if loads(name) and all(load.void for load in loads(name))]


def refuse_void(names: Sequence[str], loads: Loads) -> None:
    """Raise ProcessStopped where a block is void although it was measured again."""
    for name in void_blocks(names, loads):
        raise ProcessStopped(
            f"{name}: measured {len(loads(name))} times, and each time the process was stopped (at last:"
            f" {loads(name)[-1].void}). Find out what stops it (a machine that sleeps, Ctrl-Z, a limit on its"
            " processor time); the same command resumes this run and measures the block again"
        )


def disturbed_blocks(names: Sequence[str], loads: Loads) -> list[str]:
    """The blocks that are measured once more because they were disturbed, the worst first.

    names: all blocks of the run, of which at most `MAX_AGAIN_SHARE` are taken, those included that were
    measured again before.
    """
    valid = {name: [load for load in loads(name) if not load.void] for name in names}
    num_done = sum(len(measured) > 1 for measured in valid.values())
    most = max(math.ceil(MAX_AGAIN_SHARE * len(names)) - num_done, 0)
    once = [name for name, measured in valid.items() if len(measured) == 1 and measured[0].causes]
    return sorted(once, key=lambda name: -valid[name][0].severity)[:most]


def counts(load: BlockLoad, earlier: Sequence[BlockLoad]) -> bool:
    """Whether a measurement counts instead of earlier ones of its block: by its load, never by its times."""
    valid = [one for one in earlier if not one.void]
    return not load.void and all(load.severity < one.severity for one in valid)


def to_measure(names: Sequence[str], loads: Loads, quiet: str, console: Console) -> Iterator[str]:
    """The blocks to measure once more; the caller measures each before it asks for the next.

    First come those that a stopped process voided, then a bounded part of those that others disturbed.

    names: all blocks of the run. quiet: `Measure.quiet`; with `off`, disturbed blocks stay as they are.

    Raises:
        ProcessStopped: a block is void although it was measured again.
    """
    for _ in range(MAX_VOID_TRIES):
        for name in void_blocks(names, loads):
            console.note(f"measured again, because the process was stopped: {name}")
            yield name
    refuse_void(names, loads)
    if quiet != "off" and (disturbed := disturbed_blocks(names, loads)):
        console.note(f"measured again, because others disturbed it: {'; '.join(disturbed)}")
        yield from disturbed


def begin_block(run: RunWriter, name: str, load: BlockLoad | None, quiet: str, console: Console) -> None:
    """Begin to write a block: its first lines say whether this measurement counts, and its load."""
    earlier = run.loads(name)
    if load is None or not (earlier or load.void):
        run.begin_block(name)
    else:
        run.begin_attempt(name, counts(load, earlier))
    if load is None:
        return
    run.write_load(load)
    if load.void:
        console.warn(f"{name}: {load.void}, so that its times mean nothing")
    elif load.causes and quiet != "off":
        console.warn(f"{name}: disturbed ({formatting.causes(load.causes)})")
