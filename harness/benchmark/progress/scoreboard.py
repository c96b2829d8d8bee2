"""The scoreboard: what is known so far of every method at every decoding, as a table that grows.

Only whole blocks count, since a block holds every method's passes over the same prompts: the numbers are
those that the final table would show if the run ended here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from harness.analysis import stats
from harness.analysis.stats import Interval, Totals
from harness.reports.formatting import interval, number, times
from harness.store.records import BASELINE, GenerationRecord

_MOST_SIDE_BY_SIDE = 2
"""Decodings that fit beside one another in 100 columns."""
_NANO = 1e-9


class Sums(NamedTuple):
    """What one method did in one conversation, all its passes together."""

    num_tokens: int = 0
    total_ns: int = 0
    prefill_ns: int = 0
    num_emitted: int = 0
    num_rounds: int = 0

    def plus(self, record: GenerationRecord) -> Sums:
        """With one generation more."""
        return Sums(
            self.num_tokens + len(record.output_ids),
            self.total_ns + record.total_ns,
            self.prefill_ns + record.prefill_ns,
            self.num_emitted + sum(record.emitted),
            self.num_rounds + len(record.emitted),
        )


class Score(NamedTuple):
    """What is known of one method at one decoding; nan where it is not known."""

    tokens_per_s: float = math.nan
    speedup: Interval = Interval(math.nan, math.nan, math.nan)
    tau: float = math.nan


@dataclass
class Column:
    """The scores at one decoding."""

    temperature: float
    num_blocks: int
    """Blocks that will be measured."""
    blocks: dict[str, dict[str, dict[str, Sums]]] = field(default_factory=dict)
    """Sums by block, method and conversation; a block that is measured again replaces itself."""
    scores: dict[str, Score] = field(default_factory=dict)
    prefill_share: float = math.nan
    """Share of vanilla's time that is prefill."""

    def add(self, name: str, records: Iterable[GenerationRecord]) -> None:
        """Count a whole block, and score all methods anew."""
        sums: dict[str, dict[str, Sums]] = {}
        for record in records:
            own = sums.setdefault(record.arm, {})
            own[record.conversation] = own.get(record.conversation, Sums()).plus(record)
        self.blocks[name] = sums
        merged: dict[str, dict[str, Sums]] = {}
        for block in self.blocks.values():
            for method, found in block.items():
                merged.setdefault(method, {}).update(found)
        base = merged.get(BASELINE, {})
        self.scores = {method: _score(found, base) for method, found in merged.items()}
        spent = sum(one.total_ns for one in base.values())
        self.prefill_share = sum(one.prefill_ns for one in base.values()) / spent if spent else math.nan


class Scoreboard:
    """All decodings of one command; they share it, so that the table keeps what was measured before."""

    def __init__(self) -> None:
        self.columns: list[Column] = []

    def begin(self, temperature: float, num_blocks: int) -> Column:
        """A column for the decoding that is measured next."""
        self.columns.append(Column(temperature, num_blocks))
        return self.columns[-1]

    def table(self, methods: Sequence[str]) -> Table:
        """The last two decodings side by side. methods: rows that stand there from the first moment on."""
        shown = self.columns[-_MOST_SIDE_BY_SIDE:]
        table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
        table.add_column("method", no_wrap=True)
        for column in shown:
            table.add_column(f"T = {column.temperature:g}\ntokens/s", justify="right", no_wrap=True)
            done = f"{len(column.blocks)} of {column.num_blocks} blocks"
            table.add_column(f"{done}\nspeedup", justify="right", no_wrap=True)
            table.add_column("\ntau", justify="right", no_wrap=True)
        names = dict.fromkeys([*methods, *(name for column in shown for name in column.scores)])
        for name in sorted(names, key=lambda name: name != BASELINE):
            cells = [cell for column in shown for cell in _cells(name, column.scores.get(name, Score()))]
            table.add_row(Text(name), *map(Text, cells))
        return table


def _score(own: dict[str, Sums], base: dict[str, Sums]) -> Score:
    found = Sums(*map(sum, zip(*own.values(), strict=True)))
    tau = found.num_emitted / found.num_rounds if found.num_rounds else math.nan
    if not found.total_ns:
        return Score(tau=tau)
    # In the order of the conversations, as the final table resamples them.
    both = [name for name in base if name in own]
    speedup = stats.bootstrap([_totals(own, both)], [_totals(base, both)])
    return Score(found.num_tokens / (found.total_ns * _NANO), speedup, tau)


def _totals(sums: dict[str, Sums], names: Sequence[str]) -> Totals:
    tokens, spent = ([getattr(sums[name], key) for name in names] for key in ("num_tokens", "total_ns"))
    return Totals(np.array(tokens, dtype=np.float64), np.array(spent, dtype=np.float64))


def _cells(method: str, score: Score) -> tuple[str, str, str]:
    ratio = times(score.speedup.value)
    if method != BASELINE and not math.isnan(score.speedup.low):
        ratio += interval(score.speedup.ends)
    return number(score.tokens_per_s, 1), ratio, number(score.tau)
