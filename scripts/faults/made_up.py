"""Made-up runs: their place alone decides what they hold, so that anybody can say what must be there."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from harness.benchmark.noise.again import counts
from harness.store.journal import RunWriter
from harness.store.locations import RUNS
from harness.store.records import BlockLoad, GenerationRecord, NullReplay, Probe, RunManifest, Verdict
from harness.store.run_store import ResultStore
from harness.store.upkeep.archives import compact
from tests.support import builders
from tests.support.journals import forge

NUM_BLOCKS = 12
ARMS = ("vanilla", "ngram")
OLDER = "older"
"""The name of the run that an earlier version of the harness wrote."""
_VOID: dict[str, Any] = {"void": "the process was stopped for 15 s", "num_stops": 1}
_DISTURBED: dict[str, Any] = {"others_share": 0.31, "causes": {"others": 0.31}}
_QUIET: dict[str, Any] = {"others_share": 0.01}
_PLANS = ((_VOID, _QUIET), (_DISTURBED, _QUIET), (_QUIET,), (_QUIET, _DISTURBED))
"""The measurements of a block, in turn: void first, replaced, once, and measured again in vain."""


class Attempt(NamedTuple):
    """One measurement of a block."""

    number: int
    counts: bool
    load: BlockLoad | None


def attempts(block: int) -> list[Attempt]:
    """All measurements of a block; of those that count, the last one stays."""
    made: list[Attempt] = []
    for number, found in enumerate(_PLANS[block % len(_PLANS)]):
        load = BlockLoad(block=f"c{block}", wall_s=1.0 + number, **found)
        made.append(Attempt(number, counts(load, [one.load for one in made if one.load]), load))
    return made


def last_counting(block: int) -> Attempt:
    """The measurement of a block that stays."""
    return [one for one in attempts(block) if one.counts][-1]


def make_record(run: str, block: int, arm: str, repeat: int, attempt: int) -> GenerationRecord:
    """A record of one measurement of a block."""
    drawn = random.Random(f"{run} {block} {arm}")
    drafted = [0 if arm == "vanilla" else 4] * 5
    accepted = [drawn.randint(0, most) for most in drafted]
    # All arms give the same text, as far as they go.
    ids = [random.Random(f"{block} {place}").randrange(259) for place in range(6 + sum(accepted))]
    return builders.make_record(
        arm,
        f"c{block}",
        accepted,
        drafted,
        repeat=repeat,
        output_ids=ids,
        total_ns=builders.ROUND_NS * 6 + drawn.randrange(1000) + 1000 * attempt,
        verdict=Verdict("tie", 0, 0.0) if arm != "vanilla" else Verdict("identical"),
    )


def records_of(run: str, block: int, attempt: int) -> list[GenerationRecord]:
    """All records of one measurement of a block, in order."""
    return [make_record(run, block, arm, repeat, attempt) for arm in ARMS for repeat in range(2)]


def expected(run: str, num_blocks: int = NUM_BLOCKS) -> list[GenerationRecord]:
    """All records of a run that count, in the order of their blocks."""
    return [
        record
        for block in range(num_blocks)
        for record in records_of(run, block, last_counting(block).number)
    ]


def expected_loads(num_blocks: int = NUM_BLOCKS) -> list[BlockLoad]:
    """The loads of the measurements that count, in the order of their blocks."""
    return [load for block in range(num_blocks) if (load := last_counting(block).load)]


def make_manifest(run: str) -> RunManifest:
    """The manifest of a made-up run."""
    first = [make_record(run, 0, arm, 0, 0) for arm in ARMS]
    # Exhibits name tokens up to 999.
    card = {"source": "made up", "vocab_size": 1000, "step_bytes": 1000, "cache_bytes_per_token": 10}
    return builders.make_run(
        first,
        run,
        card=card,
        prompts={"num_conversations": 2, "hash": "h"},
        provenance={"device": {"name": "made up"}, "packages": {"torch": "2"}, "source_hash": "0"},
        created="2026-01-01T00:00:00+00:00",
    ).manifest


def write_run(
    root: Path,
    run: str,
    send: Callable[[str], None] = lambda _: None,
    num_blocks: int = NUM_BLOCKS,
    finish: bool = True,
) -> None:
    """Write what is missing of a run, and send the name of each block once all of it is written."""
    with ResultStore(root).open_run(make_manifest(run)) as opened:
        if opened.finished:
            return
        opened.write_probe(Probe(2e10, 60.0, [1000] * 5))
        for block in range(num_blocks):
            for attempt in _missing(opened, block):
                _write_attempt(opened, block, attempt)
            send(f"c{block}")
        if finish:
            opened.finish()


def _missing(opened: RunWriter, block: int) -> list[Attempt]:
    """The measurements of a block that no writer has finished."""
    name = f"c{block}"
    if opened.manifest.run_id == OLDER:
        # Earlier versions measured a block once, and no load of it.
        return [] if name in opened.finished_blocks else [last_counting(block)._replace(load=None)]
    return attempts(block)[len(opened.loads(name)) :]


def _write_attempt(opened: RunWriter, block: int, attempt: Attempt) -> None:
    name = f"c{block}"
    if attempt.load and (attempt.load.void or opened.loads(name)):
        opened.begin_attempt(name, attempt.counts)
    else:
        opened.begin_block(name)
    if attempt.load:
        opened.write_load(attempt.load)
    records = records_of(opened.manifest.run_id, block, attempt.number)
    for record in records:
        opened.write_record(record)
    opened.write_null(NullReplay(name, 10, 0))
    for record in records[::2]:
        opened.write_exhibit(builders.make_exhibit(record, "=Tell me"))
    opened.finish_block(name)


def write_store(results: Path) -> None:
    """Two packed runs, two in folders, one of an older version, and one that is not finished."""
    root = results / RUNS
    for run in ("packed-a", "packed-b"):
        write_run(root, run, num_blocks=2)
    compact(root, lambda _: None)
    for run in ("a", "b", OLDER):
        write_run(root, run, num_blocks=2)
    forge(root / OLDER, chained=False)
    write_run(root, "open", num_blocks=2, finish=False)
