"""Console messages and tables, all on stderr, because stdout is reserved for the JSON line."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import IO, Literal

from rich.box import SIMPLE_HEAD
from rich.console import Console as RichConsole
from rich.table import Table
from rich.text import Text

from harness.system.progress import watched_by
from harness.system.progress.display import Display
from harness.system.secrets import redact_text

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters but tab and line feed, signs that reverse the direction of text, and lone surrogates."""
WIDTH = 100
"""Characters per line where stderr is not a terminal, and at most on one."""


class Console:
    """Prints messages for people. Square brackets are not markup, secrets are redacted, and control
    characters, which could command the terminal, are shown as escapes.
    """

    def __init__(self, file: IO[str] | None = None) -> None:
        """file: stderr unless given."""
        self.rich = RichConsole(file=file, stderr=file is None, highlight=False)
        if not self.rich.is_terminal or self.rich.width > WIDTH:
            self.rich.width = WIDTH
        self.display = Display(self.rich, self.note)
        """Shows progress while it is entered, as in `with console.watching():`."""

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Show the waits of the block; the terminal is left as it was, also after Ctrl-C."""
        with self.display, watched_by(self.display):
            yield

    def note(self, text: str) -> None:
        """Print one line of plain information."""
        self._print(text, "")

    def warn(self, text: str) -> None:
        """Print a warning: something that did not stop the run."""
        self._print(f"warning: {text}", "yellow")

    def error(self, error: BaseException | str) -> None:
        """Print the error that stopped a run, without a traceback."""
        text = error if isinstance(error, str) else str(error) or type(error).__name__
        self._print(f"error: {text}", "bold red")

    def table(self, headers: Sequence[str], rows: Sequence[Sequence[str]], title: str = "") -> None:
        """Print a table, with columns of numbers aligned right and all others left."""
        table = Table(
            title=title and Text(_printable(title)),
            title_justify="left",
            box=SIMPLE_HEAD,
            show_edge=False,
            pad_edge=False,
            padding=(0, 1, 0, 0),
        )
        for index, header in enumerate(headers):
            numbers = any(row[index][:1].isdigit() for row in rows)
            justify: Literal["left", "right"] = "right" if numbers else "left"
            # The first columns name a row, and are never folded for the sake of remarks at its end.
            whole = index < len(headers) - 1
            table.add_column(Text(_printable(header)), justify=justify, overflow="fold", no_wrap=whole)
        for row in rows:
            table.add_row(*(Text(_printable(cell)) for cell in row))
        self.rich.print(table)

    def _print(self, text: str, style: str) -> None:
        self.rich.print(Text(_printable(text), style=style), soft_wrap=True)


def _printable(text: str) -> str:
    return _CONTROL.sub(lambda found: ascii(found[0])[1:-1], redact_text(text))


@contextmanager
def warn_on_error(console: Console, who: str) -> Iterator[None]:
    """Turn an exception in the block into a warning: reports can be rebuilt, measurements are expensive."""
    try:
        yield
    except Exception as error:
        console.warn(cause(who, error))


def cause(who: str, error: Exception) -> str:
    """One line that says what failed (`who`) and why."""
    reason = " ".join(str(error).split()) or "no reason given"
    return f"{who} failed ({type(error).__name__}: {reason}). The run itself is safe in the store."


def duration(seconds: float | None) -> str:
    """A duration in s, min, or h and min; `-` if it is None."""
    if seconds is None:
        return "-"
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
