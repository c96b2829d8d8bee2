"""The arithmetic that every record of a run obeys, so that an impossible one is not counted.

Each check raises ValueError, naming the field and its value.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

from numpy.typing import NDArray

from harness.ledger.quantities import BURST_COUNTS, BURST_TIMES, METERED, ROUND_COUNTS, ROUND_TIMES, TIMES
from harness.store.columns import Columns
from harness.store.records import BlockLoad, Exhibit, GenerationRecord, NullReplay, Probe

_MOST_COUNT, _MOST_NS = 2**31 - 1, 2**62
"""Above the first, a count does not fit into the columns; above the second, a time is over a century."""
_ALWAYS = ("drafted", "depth", "accepted")
"""Quantities that every version of the harness recorded of every round."""
_COUNTS = ("turn", "sample", "repeat", "order", "num_prompt_tokens")


def check_record(record: GenerationRecord, vocab_size: int | None = None) -> None:
    """Check one generation.

    Times and counts are not negative; each round has an entry in every list; accepted <= drafted,
    depth <= drafted and emitted <= accepted + 1 in each round; the ids are 1 + sum(emitted) many (of an arm),
    and lie in the vocabulary where its size is known.
    """
    for name in (*_COUNTS, "batch_size"):
        _check_range(name, [getattr(record, name)], _MOST_COUNT)
    for name in (*TIMES, *METERED):
        if (value := getattr(record, name)) is not None:
            _check_range(name, [value], _MOST_NS)
    for name in (*ROUND_COUNTS, *BURST_COUNTS):
        _check_range(name, getattr(record, name), _MOST_COUNT)
    for name in (*ROUND_TIMES, *BURST_TIMES):
        _check_range(name, getattr(record, name), _MOST_NS)
    _check_range("output_ids", record.output_ids, _MOST_COUNT if vocab_size is None else vocab_size - 1)
    if record.batch_size < 1:
        raise ValueError("batch_size: 0 is no size of a batch")
    if not record.output_ids and record.kind == "arm":
        raise ValueError("output_ids: an arm has one token at least")
    _check_rounds(record)
    _check_bursts(record)
    if record.verdict is not None:
        position, gap = record.verdict.position, record.verdict.gap
        if position is not None:
            _check_range("verdict.position", [position], len(record.output_ids))
        # A target whose logits are no numbers has a gap that is none.
        if gap is not None and gap < 0:
            raise ValueError(f"verdict.gap: {gap} is no distance")


def _check_rounds(record: GenerationRecord) -> None:
    num_rounds = len(record.emitted)
    for name in (*ROUND_COUNTS, *ROUND_TIMES):
        length = len(getattr(record, name))
        # A quantity that an older version did not record has no entries.
        if length != num_rounds and (length or name in _ALWAYS):
            raise ValueError(f"{name}: has {length} entries for {num_rounds} rounds")
    rounds = zip(record.drafted, record.depth, record.accepted, record.emitted, strict=True)
    for number, (drafted, depth, accepted, emitted) in enumerate(rounds):
        if accepted > drafted or depth > drafted or emitted > accepted + 1:
            raise ValueError(
                f"round {number}: drafted {drafted}, depth {depth}, accepted {accepted} and emitted {emitted}"
                " cannot be (accepted <= drafted, depth <= drafted, emitted <= accepted + 1)"
            )


def _check_bursts(record: GenerationRecord) -> None:
    if len(record.arrived) != len(record.arrival_ns):
        raise ValueError(f"arrived: has {len(record.arrived)} entries for {len(record.arrival_ns)} bursts")
    # An end token need not be streamed.
    if sum(record.arrived) > len(record.output_ids):
        raise ValueError(f"arrived: {sum(record.arrived)} tokens of an output of {len(record.output_ids)}")
    if record.arrival_ns != sorted(record.arrival_ns):
        raise ValueError("arrival_ns: a burst arrives before the one ahead of it")


def check_columns(columns: Columns) -> None:
    """Check the columns of any number of generations, as `check_record` checks one."""
    for name, numbers in columns.per_generation.items():
        # -1 says that the quantity is not known.
        _check_least(name, numbers, -1 if name in METERED else 0)
    for name, counts in columns.per_round.items():
        _check_least(name, counts, 0)
    for name in ("turn", "sample", "repeat", "num_prompt_tokens", "num_tokens"):
        _check_least(name, getattr(columns, name), 0)
    _check_least("batch_size", columns.batch_size, 1)
    drafted, depth, accepted, emitted = (columns.per_round[name] for name in (*_ALWAYS, "emitted"))
    if (accepted > drafted).any() or (depth > drafted).any() or (emitted > accepted + 1).any():
        raise ValueError("a round keeps or nests more than it drafts, or emits more than it keeps and one")
    wrong = columns.num_tokens != 1 + columns.rounds_sum(emitted)
    if (wrong & columns.is_arm).any():
        raise ValueError("tokens and rounds of an arm disagree")


def _check_least(name: str, values: NDArray[Any], least: int) -> None:
    if len(values) and int(values.min()) < least:
        raise ValueError(f"{name}: {int(values.min())} is below {least}")


def check_null(null: NullReplay) -> None:
    """Check a null replay: no more tokens differ than there are."""
    _check_range("num_tokens", [null.num_tokens], _MOST_COUNT)
    _check_range("num_differing", [null.num_differing], null.num_tokens)


def check_probe(probe: Probe) -> None:
    """Check a probe: finite speeds, times and sizes, none negative."""
    for name in ("read_bandwidth", "lap_ns"):
        value = getattr(probe, name)
        if not math.isfinite(value) or value < 0:
            raise ValueError(f"{name}: {value} is no speed and no time")
    _check_range("verify_ns", [value for value in probe.verify_ns if value is not None], _MOST_NS)
    _check_range("memory", list(probe.memory.values()), _MOST_NS)


def check_load(load: BlockLoad) -> None:
    """Check who used the machine: finite seconds and shares, none negative."""
    for name, value in vars(load).items():
        numbers = value.values() if isinstance(value, dict) else [value]
        for number in numbers:
            if isinstance(number, int | float) and not (math.isfinite(number) and number >= 0):
                raise ValueError(f"{name}: {number} is no time, share or count")


def check_exhibit(exhibit: Exhibit) -> None:
    """Check an exhibit: the lists of a tree fit one another, and its parents come before their children."""
    rows = exhibit.picture or []
    if len(set(map(len, rows))) > 1 or not all(re.fullmatch(r"(?:[0-9a-f]{6})+", row) for row in rows):
        raise ValueError("picture: its rows are not as many colours each, of six hexadecimal digits")
    for tree in exhibit.trees:
        num_nodes = len(tree.tokens)
        if len(tree.parents) != num_nodes or len(tree.confidence) not in (0, num_nodes):
            raise ValueError(f"round {tree.round}: the lists of its tree have different lengths")
        _check_range("kept", tree.kept, num_nodes - 1)
        _check_range("tokens", tree.tokens, _MOST_COUNT)
        _check_range("round", [tree.round], _MOST_COUNT)
        if not all(-1 <= parent < node for node, parent in enumerate(tree.parents)):
            raise ValueError(f"round {tree.round}: a node of its tree comes before its parent")


def _check_range(name: str, values: Sequence[int], most: int) -> None:
    if values and (min(values) < 0 or max(values) > most):
        wrong = next(value for value in values if not 0 <= value <= most)
        raise ValueError(f"{name}: {wrong} is outside of 0 to {most}")
