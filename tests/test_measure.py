"""Measure: what the machine is asked, and what asking costs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from harness.accept import Coupled
from harness.decoding import DecodingParams
from harness.engine import Request
from harness.measure import Stopwatch, last_level_cache_bytes, read_bandwidth
from harness.records import LAPS_PER_ROUND
from methods.ngram import NGram
from tests.targets import engine


def test_the_last_level_cache_is_that_of_all_processors(tmp_path: Path) -> None:
    shared = {0: "0-1", 1: "0-1", 2: "2-3", 3: "2-3"}
    for cpu, together in shared.items():
        for index, (level, size, who) in enumerate([(1, "32K", str(cpu)), (3, "4096K", together)]):
            folder = tmp_path / f"cpu{cpu}" / "cache" / f"index{index}"
            folder.mkdir(parents=True)
            for name, text in (("level", level), ("size", size), ("shared_cpu_list", who)):
                (folder / name).write_text(f"{text}\n")
    assert last_level_cache_bytes(tmp_path) == 2 * 4096 * 1024
    assert last_level_cache_bytes(tmp_path / "elsewhere") == 0


def test_the_buffer_is_larger_than_the_cache_unless_its_size_is_given(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[int] = []

    class Buffer:
        nbytes = 1

        def sum(self) -> None: ...

    def ones(length: int, **_: object) -> Buffer:
        made.append(4 * length)
        return Buffer()

    monkeypatch.setattr(torch, "ones", ones)
    for cache_bytes in (1, 2**29):
        monkeypatch.setattr("harness.measure.last_level_cache_bytes", lambda size=cache_bytes: size)
        read_bandwidth.__wrapped__(torch.device("cpu"))
    read_bandwidth.__wrapped__(torch.device("cpu"), 0.5)
    assert made == [2**30, 2**31, 2**29]


def test_one_process_has_one_bandwidth() -> None:
    device = torch.device("cpu")
    assert read_bandwidth(device, 0.001) == read_bandwidth(device, 0.001) > 0


def test_the_loop_reads_the_clock_as_often_as_its_probe_is_charged(monkeypatch: pytest.MonkeyPatch) -> None:
    laps: list[str] = []
    monkeypatch.setattr(Stopwatch, "lap", lambda self, name: laps.append(name))
    loop, drafter = engine(), NGram()
    drafter.bind(loop.target)
    params = DecodingParams(name="greedy", max_new_tokens=8)
    (made,) = loop.generate([Request(prompt=[1, 2, 1], key=0)], drafter, params, Coupled())
    assert len(laps) == LAPS_PER_ROUND * len(made.emitted) + 2, "one at the start, one after the prefill"
