"""The progress of a run: a live bar on a terminal, elsewhere a line every few seconds."""

from __future__ import annotations

import time
from collections.abc import Callable

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from harness.store.records import GenerationRecord, RunManifest
from harness.system.console import Console


class RunProgress:
    """Counts the generations of one run, and shows their rate and when the last one is due."""

    def __init__(
        self,
        console: Console,
        interval_s: float = 15.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """interval_s: seconds between two lines where the output is no terminal."""
        self._console = console
        self._interval_s, self._clock = interval_s, clock
        self._bar: Progress | None = None
        self._num_total: int | None = None
        self._num_done = self._num_tokens = 0
        self._begin = self._last_line = clock()

    def plan(self, num_generations: int, most_seconds: float | None = None) -> None:
        """Set how many generations will be measured. Called before `start`.

        most_seconds: seconds they take at the speed of the warm-up if every answer reaches the cap.
        """
        self._num_total = num_generations
        if most_seconds is not None:
            self._console.note(
                f"{num_generations} generations; at the speed of the warm-up at most"
                f" {most_seconds / 60:.0f} min (if every answer reaches the cap)"
            )

    def start(self, manifest: RunManifest) -> None:
        """Begin to count, once the manifest is written."""
        self._console.note(f"run {manifest.run_id}: {', '.join([*manifest.arms, *manifest.rungs])}")
        self._num_done = self._num_tokens = 0
        self._begin = self._last_line = self._clock()
        if self._console.rich.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}"),
                TimeRemainingColumn(),
                console=self._console.rich,
                transient=True,
            )
            self._bar.add_task("", total=self._num_total, rate="")
            self._bar.start()

    def record(self, record: GenerationRecord) -> None:
        """Count one generation."""
        self._num_done += 1
        self._num_tokens += len(record.output_ids)
        moment = self._clock()
        rate = f"{self._num_tokens / max(moment - self._begin, 1e-9):.1f} tokens/s"
        if self._bar:
            self._bar.update(self._bar.task_ids[0], advance=1, description=record.arm, rate=rate)
        elif moment - self._last_line >= self._interval_s:
            self._last_line = moment
            total = f"/{self._num_total}" if self._num_total else ""
            self._console.note(
                f"{self._num_done}{total} generations, {rate}{self._eta(moment)}, now {record.arm}"
            )

    def stop(self) -> None:
        """Remove the bar, also after an error."""
        if self._bar:
            self._bar.stop()
            self._bar = None

    def _eta(self, moment: float) -> str:
        if not self._num_total:
            return ""
        left_s = (moment - self._begin) / self._num_done * max(self._num_total - self._num_done, 0)
        return f", {int(left_s // 60)}:{int(left_s % 60):02d} left"
