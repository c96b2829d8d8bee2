"""The display at the foot of the terminal: waits with their bars, and a table that somebody keeps.

Where the output is no terminal, a wait is a line after 5 s, 10 s, 20 s and so on. Nothing is drawn while the
clock of a measurement runs: a thread draws only waits that are not timed.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType

from rich.console import Console as RichConsole
from rich.console import Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from harness.system.progress.waits import Wait, minutes

LONG_S = 5.0
"""From this many seconds on a wait is worth a line."""
_TICK_S = 0.25
_FLICKER_S = 0.5
"""Shorter waits are not drawn."""


class Display:
    """Shows waits and one table while it is entered as a context; a `Watcher`."""

    def __init__(self, rich: RichConsole, note: Callable[[str], None]) -> None:
        """rich: where to draw. note: prints a line above what is drawn."""
        self._rich, self._note = rich, note
        self._waits: list[Wait] = []
        self._due: dict[Wait, float] = {}
        self._table: Callable[[], RenderableType] | None = None
        self._live: Live | None = None
        self._lock = threading.RLock()
        self._over = threading.Event()
        self._ticker: threading.Thread | None = None

    def __enter__(self) -> Display:
        self._over.clear()
        self._ticker = threading.Thread(target=self._tick, name="display", daemon=True)
        self._ticker.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Take the display away and show the cursor again, whatever happened."""
        self._over.set()
        if self._ticker:
            self._ticker.join()
        with self._lock:
            self._table = None
            self._waits.clear()
            self._draw()

    def show(self, table: Callable[[], RenderableType] | None) -> None:
        """Keep what `table` returns on the terminal, below all messages; None takes it away."""
        with self._lock:
            self._table = table
            self._draw()

    def refresh(self) -> None:
        """Draw the present state."""
        with self._lock:
            self._draw()

    def began(self, wait: Wait) -> None:
        """Put a wait at the end of the list."""
        with self._lock:
            self._waits.append(wait)
            self._due[wait] = LONG_S

    def advanced(self, wait: Wait) -> None:
        """Show how far a wait is."""
        with self._lock:
            self._show_waits()

    def ended(self, wait: Wait) -> None:
        """Take a wait away; of a long one the seconds that it took stay."""
        with self._lock:
            if wait in self._waits:
                self._waits.remove(wait)
            self._due.pop(wait, None)
            if self._live:
                self._draw()
            if wait.elapsed_s >= LONG_S:
                self._note(f"{wait.what}: {minutes(wait.elapsed_s)}")

    def _tick(self) -> None:
        while not self._over.wait(_TICK_S):
            with self._lock:
                if self._waits and not any(wait.timed for wait in self._waits):
                    self._show_waits()

    def _show_waits(self) -> None:
        if self._rich.is_terminal:
            if any(wait.elapsed_s >= _FLICKER_S for wait in self._waits):
                self._draw()
            return
        for wait in self._waits:
            if wait.elapsed_s >= self._due[wait]:
                self._due[wait] = 2 * wait.elapsed_s
                self._note(f"{wait.what}: {wait.message()}")

    def _draw(self) -> None:
        """Draw on a terminal; begin and end drawing as there is something to draw."""
        if not self._rich.is_terminal:
            return
        if self._waits or self._table:
            if self._live is None:
                self._live = Live(
                    console=self._rich, get_renderable=self._content, auto_refresh=False, transient=True
                )
                self._live.start()
            self._live.refresh()
        elif self._live is not None:
            live, self._live = self._live, None
            live.stop()

    def _content(self) -> RenderableType:
        shown: list[RenderableType] = [self._table()] if self._table else []
        if self._waits:
            lines = Table.grid(padding=(0, 1))
            for wait in self._waits:
                share = wait.share
                bar = ProgressBar(total=1.0, completed=share or 0.0, width=20, pulse=share is None)
                message = Text(wait.message(), overflow="ellipsis", no_wrap=True)
                lines.add_row(Text(wait.what, no_wrap=True), bar, message)
            shown.append(lines)
        return Group(*shown)
