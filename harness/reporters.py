"""Reporters: tell people how a run goes; all of it on stderr, as stdout belongs to the JSON line."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Protocol

from rich.console import Console as RichConsole
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from harness.records import GenerationRecord, Run, RunManifest
from harness.row import Row

_WIDTH_OF_A_FILE = 200


class Reporter(Protocol):
    """Hears of a run while it goes and when it has ended."""

    def start(self, manifest: RunManifest) -> None:
        """The run begins; its manifest is on the disk."""

    def record(self, record: GenerationRecord) -> None:
        """A generation was measured and is on the disk."""

    def finish(self, run: Run, rows: Sequence[Row], files: Sequence[Path]) -> None:
        """The run ended. rows: one a method; files: tables and figures made of it."""


class Console:
    """Progress, notes, tables and errors; a live bar on a terminal, else a line now and then."""

    def __init__(
        self,
        file: IO[str] | None = None,
        interval_s: float = 15.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """file: stderr unless given. interval_s: between progress lines where there is no terminal."""
        self._rich = RichConsole(file=file, stderr=file is None, highlight=False)
        if not self._rich.is_terminal:
            self._rich.width = _WIDTH_OF_A_FILE
        self._interval_s, self._clock = interval_s, clock
        self._bar: Progress | None = None
        self._num_total: int | None = None
        self._num_done = self._num_tokens = 0
        self._begin = self._last_line = clock()

    def plan(self, num_generations: int, most_seconds: float | None = None) -> None:
        """How many generations this process will measure, so that progress has an end. Before `start`.

        most_seconds: what they take at the pace of the warm-up if every answer reaches the cap.
        """
        self._num_total = num_generations
        if most_seconds is not None:
            self.note(
                f"{num_generations} generations; at the pace of the warm-up at most"
                f" {most_seconds / 60:.0f} min (if every answer reaches the cap)"
            )

    def start(self, manifest: RunManifest) -> None:
        """See `Reporter`."""
        self.note(f"run {manifest.run_id}: {', '.join([*manifest.arms, *manifest.rungs])}")
        self._num_done = self._num_tokens = 0
        self._begin = self._last_line = self._clock()
        if self._rich.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}"),
                TimeRemainingColumn(),
                console=self._rich,
                transient=True,
            )
            self._bar.add_task("", total=self._num_total, rate="")
            self._bar.start()

    def record(self, record: GenerationRecord) -> None:
        """See `Reporter`."""
        self._num_done += 1
        self._num_tokens += len(record.output_ids)
        moment = self._clock()
        rate = f"{self._num_tokens / max(moment - self._begin, 1e-9):.1f} tokens/s"
        if self._bar:
            self._bar.update(self._bar.task_ids[0], advance=1, description=record.arm, rate=rate)
        elif moment - self._last_line >= self._interval_s:
            self._last_line = moment
            total = f"/{self._num_total}" if self._num_total else ""
            self.note(f"{self._num_done}{total} generations, {rate}{self._eta(moment)}, now {record.arm}")

    def finish(self, run: Run, rows: Sequence[Row], files: Sequence[Path]) -> None:
        """See `Reporter`."""
        self.stop()
        self.note(f"run {run.manifest.run_id}: {len(run.records)} generations in {run.folder}")
        for failure in run.failures:
            self.warn(f"{failure.kind} in {failure.where}: {failure.message}")
        for path in files:
            self.note(f"wrote {path}")

    def stop(self) -> None:
        """Take the bar away, also when a run breaks off."""
        if self._bar:
            self._bar.stop()
            self._bar = None

    def note(self, text: str) -> None:
        """One line of plain information."""
        self._print(text, "")

    def warn(self, text: str) -> None:
        """Something to know that did not stop the run."""
        self._print(f"warning: {text}", "yellow")

    def error(self, error: BaseException | str) -> None:
        """What stopped a run, without a traceback."""
        text = error if isinstance(error, str) else str(error) or type(error).__name__
        self.stop()
        self._print(f"error: {text}", "bold red")

    def table(self, headers: Sequence[str], rows: Sequence[Sequence[str]], title: str = "") -> None:
        """Cells are printed as they are; columns of words are on the left, of numbers on the right."""
        table = Table(title=title and Text(title), title_justify="left")
        for index, header in enumerate(headers):
            numbers = any(row[index][:1].isdigit() for row in rows)
            table.add_column(Text(header), justify="right" if numbers else "left", overflow="fold")
        for row in rows:
            table.add_row(*(Text(cell) for cell in row))
        self._rich.print(table)

    def _print(self, text: str, style: str) -> None:
        self._rich.print(Text(text, style=style), soft_wrap=True)

    def _eta(self, moment: float) -> str:
        if not self._num_total:
            return ""
        left_s = (moment - self._begin) / self._num_done * max(self._num_total - self._num_done, 0)
        return f", {int(left_s // 60)}:{int(left_s % 60):02d} left"


class Reporters:
    """Several reporters as one. None of them can fail a run: what goes wrong is one warning line."""

    def __init__(self, console: Console, *others: Reporter) -> None:
        """The console hears everything first."""
        self._console, self._all = console, (console, *others)

    def start(self, manifest: RunManifest) -> None:
        """See `Reporter`."""
        self._tell(lambda reporter: reporter.start(manifest))

    def record(self, record: GenerationRecord) -> None:
        """See `Reporter`."""
        self._tell(lambda reporter: reporter.record(record))

    def finish(self, run: Run, rows: Sequence[Row], files: Sequence[Path]) -> None:
        """See `Reporter`."""
        self._tell(lambda reporter: reporter.finish(run, rows, files))

    def _tell(self, call: Callable[[Reporter], None]) -> None:
        for reporter in self._all:
            with spared(self._console, type(reporter).__name__):
                call(reporter)


@contextmanager
def spared(console: Console, who: str) -> Iterator[None]:
    """What goes wrong inside is one warning line: a report can be made again, a measurement is dear."""
    try:
        yield
    except Exception as error:
        console.warn(cause(who, error))


def cause(who: str, error: Exception) -> str:
    """One line: who failed and why."""
    reason = " ".join(str(error).split()) or "no reason given"
    return f"{who} failed ({type(error).__name__}: {reason}). The run itself is safe in the store."


def duration(seconds: float | None) -> str:
    """`-` where it is not known, else seconds, minutes or hours and minutes."""
    if seconds is None:
        return "-"
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
