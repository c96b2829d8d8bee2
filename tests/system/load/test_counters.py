"""Readings of clocks and counters: what is attributed to whom, and a real stop of a process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from harness.system.load.counters import (
    CounterReader,
    Counters,
    _quota_file,
    _throttled_s,
    counting_stops,
    together,
    usage,
)

ROOT = Path(__file__).parents[3]
ZERO = Counters(
    wall_s=100.0,
    asleep_s=5.0,
    busy_s=50.0,
    waiting_s=1.0,
    stolen_s=2.0,
    own_s=30.0,
    helpers_s=10.0,
    thread_s=20.0,
    throttled_s=None,
    num_continued=0,
)


def later(**passed: float) -> Counters:
    """`ZERO`, with some counters further on."""
    return ZERO._replace(**{name: getattr(ZERO, name) + more for name, more in passed.items()})


def test_what_the_run_did_not_use_itself_others_used() -> None:
    found = usage(ZERO, later(wall_s=10, busy_s=16, own_s=10, thread_s=9.5, stolen_s=0.5))
    assert (found.wall_s, found.own_s, found.others_s, found.stolen_s) == (10, 10, 6, 0.5)
    assert found.missing_s == 0, "others and the hypervisor explain why the thread waited"
    assert found.throttled_s is None, "a counter that is not there is not zero"


def test_counters_that_tick_at_different_moments_give_no_negative_time() -> None:
    assert usage(ZERO, later(wall_s=1, busy_s=0.99, own_s=1.0)).others_s == 0


@pytest.mark.parametrize("excuse", ["busy_s", "stolen_s", "waiting_s"])
def test_time_in_which_nobody_ran_is_missing_unless_something_explains_it(excuse: str) -> None:
    stopped = {"wall_s": 18.0, "own_s": 3.0, "thread_s": 3.0, "busy_s": 3.0}
    assert usage(ZERO, later(**stopped)).missing_s == 15
    explained = {**stopped, excuse: stopped.get(excuse, 0.0) + 15}
    assert usage(ZERO, later(**explained)).missing_s == 0


def test_a_thread_that_waits_for_a_server_of_the_run_has_not_been_stopped() -> None:
    asked = {"wall_s": 18.0, "own_s": 31.0, "thread_s": 3.0, "busy_s": 31.0}
    assert usage(ZERO, later(**asked, helpers_s=28.0)).missing_s == 0
    assert usage(ZERO, later(**asked, helpers_s=5.0)).missing_s == 10


def test_a_reader_sees_the_work_of_a_process_that_it_has_started_as_a_helpers() -> None:
    code = "import time\nprint(flush=True)\nwhile time.process_time() < 60: pass"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as child:
        try:
            assert child.stdout
            child.stdout.readline()
            read = CounterReader()
            before = after = read()
            while after.helpers_s - before.helpers_s < 0.1:
                time.sleep(0.02)
                after = read()
        finally:
            child.kill()
    assert after.own_s - before.own_s >= after.helpers_s - before.helpers_s


def test_sleep_of_the_machine_is_the_difference_of_its_clocks() -> None:
    assert usage(ZERO, later(asleep_s=3600)).slept_s == 3600
    assert usage(ZERO._replace(asleep_s=None), later()).slept_s is None


def test_spans_add_up_and_what_one_does_not_know_the_whole_does_not() -> None:
    first, second = usage(ZERO, later(wall_s=1, busy_s=1)), usage(ZERO, later(wall_s=2, busy_s=1))
    whole = together([first, second])
    assert (whole.wall_s, whole.others_s, whole.throttled_s) == (3, 2, None)


def test_a_reader_sees_the_work_of_this_process_as_its_own() -> None:
    read = CounterReader()
    before = read()
    while time.thread_time() - before.thread_s < 0.1:
        pass
    after = read()
    assert after.own_s - before.own_s >= 0.05, "the counter ticks in hundredths of a second"
    assert after.wall_s > before.wall_s
    assert read.num_cores >= 1
    assert os.getpid() in read.family


@pytest.mark.parametrize(
    ("groups", "folder", "text", "seconds"),
    [
        ("0::/job\n", "job", "usage_usec 9\nnr_throttled 4\nthrottled_usec 1500000\n", 1.5),
        ("1:cpu:/\n0::/\n", "cpu", "nr_periods 8\nthrottled_time 2500000000\n", 2.5),
        ("5:memory:/\n", "memory", "throttled_usec 7\n", None),
        ("0::/job\n", "job", "usage_usec 9\n", None),
    ],
)
def test_a_quota_is_read_from_either_version_of_control_groups(
    tmp_path: Path, groups: str, folder: str, text: str, seconds: float | None
) -> None:
    (tmp_path / folder).mkdir()
    (tmp_path / folder / "cpu.stat").write_text(text)
    (tmp_path / "own").write_text(groups)
    assert _throttled_s(_quota_file(tmp_path, tmp_path / "own")) == seconds


STOPPED = """
import time
from harness.system.load.counters import CounterReader, counting_stops, usage
from harness.system.load.disturbance import Machine
with counting_stops():
    read = CounterReader()
    before = read()
    print("ready", flush=True)
    while read().num_continued == before.num_continued and time.monotonic() - before.wall_s < 60:
        pass
    found = usage(before, read())
machine = Machine(num_cores=read.num_cores, spare_cores=0, always_computes=True)
print(found.num_stops, found.wall_s, found.missing_s, machine.stopped([found]), flush=True)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="this system does not stop processes by a signal")
def test_a_process_that_is_stopped_and_continued_notices_it() -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", STOPPED],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    child.send_signal(signal.SIGSTOP)
    time.sleep(1.2)
    child.send_signal(signal.SIGCONT)
    num_stops, wall_s, missing_s, *why = child.communicate(timeout=90)[0].split()
    assert num_stops == "1"
    # On a busy machine others may have used the processors in the meantime, which explains the gap away.
    assert float(wall_s) >= 1.2
    assert 0 <= float(missing_s) <= float(wall_s)
    assert " ".join(why[:4]) == "the process was stopped"


def test_listening_to_stops_ends_with_the_block_and_keeps_who_listened_before() -> None:
    heard: list[int] = []
    earlier = signal.signal(signal.SIGCONT, lambda number, frame: heard.append(number))
    try:
        listening = signal.getsignal(signal.SIGCONT)
        read = CounterReader()
        with counting_stops():
            before = read().num_continued
            os.kill(os.getpid(), signal.SIGCONT)
            assert read().num_continued == before + 1
        assert heard == [signal.SIGCONT]
        assert signal.getsignal(signal.SIGCONT) is listening
    finally:
        signal.signal(signal.SIGCONT, earlier)
