"""The progress of a run: a table that fills on a terminal, elsewhere at most one line per block."""

from __future__ import annotations

import time
from collections.abc import Callable

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from harness.benchmark.progress.scoreboard import Column, Scoreboard
from harness.reports.formatting import number, percent, times
from harness.store.records import BASELINE, GenerationRecord, RunManifest
from harness.system.console import Console, duration
from harness.system.progress.waits import minutes

_NUM_LEADERS = 3
"""Methods that a line names."""


class RunProgress:
    """Counts the generations of one run, and shows what they come to and when the last one is due.

    It draws after a generation and after a block, never while the clock of one runs.
    """

    def __init__(
        self,
        console: Console,
        board: Scoreboard | None = None,
        interval_s: float = 15.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """board: shared with the other runs of the command. interval_s: seconds between two lines where the
        output is no terminal."""
        self._console, self._board = console, board or Scoreboard()
        self._interval_s, self._clock = interval_s, clock
        self._column: Column | None = None
        self._block: list[GenerationRecord] = []
        self._methods: list[str] = []
        self._num_total: int | None = None
        self._num_blocks = self._num_done = 0
        self._last = ""
        self._begin = self._last_line = clock()

    def plan(self, num_generations: int, num_blocks: int, most_seconds: float | None = None) -> None:
        """Set how much will be measured. Called before `start`.

        most_seconds: seconds that it takes at the speed of the warm-up if every answer reaches the cap.
        """
        self._num_total, self._num_blocks = num_generations, num_blocks
        if most_seconds is not None:
            self._console.note(
                f"{num_generations} generations; at the speed of the warm-up at most"
                f" {duration(most_seconds)} (if every answer reaches the cap)"
            )

    def start(self, manifest: RunManifest) -> None:
        """Begin to count, once the manifest is written."""
        self._console.note(f"run {manifest.run_id}")
        self._methods = [*manifest.arms, *manifest.rungs]
        self._column = self._board.begin(manifest.cell.temperature, self._num_blocks)
        self._num_done = 0
        self._begin = self._last_line = self._clock()
        self._console.display.show(self._content)

    def record(self, record: GenerationRecord) -> None:
        """Count one generation."""
        self._num_done += 1
        self._block.append(record)
        self._last = f"{record.arm} on {record.conversation}"
        self._console.display.refresh()

    def finish_block(self, name: str) -> None:
        """Score the generations since the last block as the block `name`."""
        block, self._block = self._block, []
        if self._column is None:
            return
        self._column.add(name, block)
        self._console.display.refresh()
        moment = self._clock()
        whole = len(self._column.blocks) >= self._num_blocks
        if not self._console.rich.is_terminal and (whole or moment - self._last_line >= self._interval_s):
            self._last_line = moment
            self._console.note(self._line(self._column))

    def stop(self) -> None:
        """Take the table away, also after an error."""
        self._console.display.show(None)

    def _line(self, column: Column) -> str:
        vanilla = column.scores.get(BASELINE)
        speed = f", vanilla {number(vanilla.tokens_per_s, 1)} tokens/s" if vanilla else ""
        others = [(name, one) for name, one in column.scores.items() if name != BASELINE]
        timed = [(one.speedup.value, f"{name} {times(one.speedup.value)}") for name, one in others]
        taus = [(one.tau, f"{name} tau {number(one.tau)}") for name, one in others]
        known = [one for one in timed if one[0] == one[0]] or [one for one in taus if one[0] == one[0]]
        best = [text for _, text in sorted(known, reverse=True)[:_NUM_LEADERS]]
        where = f"T = {column.temperature:g}: {len(column.blocks)} of {column.num_blocks} blocks"
        line = f"{where}{self._left()}{speed}"
        for place, text in enumerate(best):
            longer = f"{line}{', ' if place else '; '}{text}"
            if len(longer) > self._console.rich.width:
                break
            line = longer
        return line

    def _content(self) -> RenderableType:
        """The table, and below it how far the run is."""
        below = Table.grid(padding=(0, 1))
        bar = ProgressBar(total=self._num_total or 1, completed=self._num_done, width=20)
        message = f"{self._num_done} of {self._num_total} answers{self._left()}; {self._last}"
        below.add_row(bar, Text(message, no_wrap=True, overflow="ellipsis"))
        shown: list[RenderableType] = [self._board.table(self._methods), below]
        share = self._column.prefill_share if self._column else float("nan")
        if share == share:
            shown.append(Text(f"prefill is {percent(share)} of vanilla's time; blocks that are done count"))
        return Group(*shown)

    def _left(self) -> str:
        if not self._num_total or not self._num_done:
            return ""
        spent = self._clock() - self._begin
        left_s = spent / self._num_done * max(self._num_total - self._num_done, 0)
        return f", {minutes(left_s)} left"
