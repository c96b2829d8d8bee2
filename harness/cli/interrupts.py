"""Signals that end a process, turned into the interruption that Ctrl-C is, so that a run records its end."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = ("SIGTERM", "SIGHUP")


class Stopped(KeyboardInterrupt):
    """A signal that asks the process to end; the text names it."""


@contextmanager
def interrupts_on_signals() -> Iterator[None]:
    """Raise `Stopped` in the main thread on the first SIGTERM or SIGHUP; a second one ends the process.

    A signal that is ignored (`nohup`) or that somebody handles already (a scheduler) stays as it is.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [getattr(signal, name) for name in _SIGNALS if hasattr(signal, name)]
    ours = [number for number in numbers if signal.getsignal(number) is signal.SIG_DFL]
    for number in ours:
        signal.signal(number, _stop)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)


def _stop(number: int, _: FrameType | None) -> None:
    signal.signal(number, signal.SIG_DFL)
    raise Stopped(f"stopped by {signal.Signals(number).name}")
