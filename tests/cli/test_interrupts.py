"""A signal that asks the process to end is an interruption; what somebody else handles stays theirs."""

from __future__ import annotations

import signal

import pytest

from harness.cli.interrupts import Stopped, interrupts_on_signals


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_end_is_an_interruption_that_names_it(number: signal.Signals) -> None:
    # Whoever started the tests may ignore the signal.
    before = signal.signal(number, signal.SIG_DFL)
    try:
        with pytest.raises(Stopped, match=f"stopped by {number.name}"), interrupts_on_signals():
            signal.raise_signal(number)
        assert signal.getsignal(number) is signal.SIG_DFL
    finally:
        signal.signal(number, before)
    assert issubclass(Stopped, KeyboardInterrupt)


def test_an_ignored_signal_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with interrupts_on_signals():
            signal.raise_signal(signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
