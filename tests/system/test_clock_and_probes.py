"""Clock and probes: the right quantities are read, and reading them costs what is charged for it."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from harness.decoding.acceptance import Coupled
from harness.decoding.batch import Request
from harness.decoding.sampling import DecodingParams
from harness.store.records import LAPS_PER_ROUND
from harness.system.clock import Stopwatch
from harness.system.probes import _energy_meter, energy_mj, last_level_cache_bytes, read_bandwidth
from methods.ngram import NGram
from tests.support.targets import engine


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
        nbytes, device = 1, torch.device("cpu")

        def sum(self) -> None: ...

    def ones(length: int, **_: object) -> Buffer:
        made.append(4 * length)
        return Buffer()

    monkeypatch.setattr(torch, "ones", ones)
    for cache_bytes in (1, 2**29):
        monkeypatch.setattr("harness.system.probes.last_level_cache_bytes", lambda size=cache_bytes: size)
        read_bandwidth.__wrapped__(torch.device("cpu"))
    read_bandwidth.__wrapped__(torch.device("cpu"), 0.5)
    assert made == [2**30, 2**31, 2**29]


class Meter:
    """A stand-in for `pynvml` whose counter grows by 250 mJ with every reading."""

    class NVMLError(Exception):
        pass

    def __init__(self, works: bool) -> None:
        self.works, self.total = works, 1000

    def nvmlInit(self) -> None:
        return

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        assert uuid == "GPU-f00"
        return uuid

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: str) -> int:
        if not self.works:
            raise self.NVMLError
        self.total += 250
        return self.total


@pytest.mark.parametrize("works", [True, False])
def test_energy_is_the_devices_own_meter_or_unknown(works: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", Meter(works))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="f00"))
    _energy_meter.cache_clear()
    device = torch.device("cuda", 7)
    before, after = energy_mj(device), energy_mj(device)
    assert (before, after) == ((1500, 1750) if works else (None, None))
    assert energy_mj(torch.device("cpu")) is None
    _energy_meter.cache_clear()


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
