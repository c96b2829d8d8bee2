"""Console: notes, warnings, errors and tables, all on stderr, because stdout belongs to the JSON line."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import IO

from rich.console import Console as RichConsole
from rich.table import Table
from rich.text import Text

_WIDTH_OF_A_FILE = 200


class Console:
    """Writes for people. Every text is printed as it is: brackets are no markup."""

    def __init__(self, file: IO[str] | None = None) -> None:
        """file: stderr unless given."""
        self.rich = RichConsole(file=file, stderr=file is None, highlight=False)
        if not self.rich.is_terminal:
            self.rich.width = _WIDTH_OF_A_FILE

    def note(self, text: str) -> None:
        """Print one line of plain information."""
        self._print(text, "")

    def warn(self, text: str) -> None:
        """Print a warning: something that did not stop the run."""
        self._print(f"warning: {text}", "yellow")

    def error(self, error: BaseException | str) -> None:
        """Print what stopped a run, without a traceback."""
        text = error if isinstance(error, str) else str(error) or type(error).__name__
        self._print(f"error: {text}", "bold red")

    def table(self, headers: Sequence[str], rows: Sequence[Sequence[str]], title: str = "") -> None:
        """Print a table; columns of words are aligned left, columns of numbers right."""
        table = Table(title=title and Text(title), title_justify="left")
        for index, header in enumerate(headers):
            numbers = any(row[index][:1].isdigit() for row in rows)
            table.add_column(Text(header), justify="right" if numbers else "left", overflow="fold")
        for row in rows:
            table.add_row(*(Text(cell) for cell in row))
        self.rich.print(table)

    def _print(self, text: str, style: str) -> None:
        self.rich.print(Text(text, style=style), soft_wrap=True)


@contextmanager
def warn_on_error(console: Console, who: str) -> Iterator[None]:
    """Turn an exception in the block into a warning: reports can be rebuilt, measurements are expensive."""
    try:
        yield
    except Exception as error:
        console.warn(cause(who, error))


def cause(who: str, error: Exception) -> str:
    """One line that says who failed and why."""
    reason = " ".join(str(error).split()) or "no reason given"
    return f"{who} failed ({type(error).__name__}: {reason}). The run itself is safe in the store."


def duration(seconds: float | None) -> str:
    """Seconds, minutes, or hours and minutes; `-` where the duration is not known."""
    if seconds is None:
        return "-"
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
