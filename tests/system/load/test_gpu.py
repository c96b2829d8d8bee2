"""Looks at a GPU through a stand-in for NVML: own and other processes, slowdowns, and what is not known."""

from __future__ import annotations

import os
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from harness.system.load.gpu import GpuState, GpuWatch, gpu_watch


class Nvml:
    """A stand-in for `pynvml`; a field that is None is a call that this driver refuses."""

    NVML_CLOCK_SM = 1

    class NVMLError(Exception):
        pass

    def __init__(
        self,
        pids: list[int] | None = None,
        samples: dict[int, int] | None = None,
        reasons: int | None = None,
        mhz: int | None = None,
        works: bool = True,
    ) -> None:
        self.pids, self.samples, self.reasons, self.mhz, self.works = pids, samples, reasons, mhz, works
        self.asked_since: list[int] = []

    def _known(self, value: Any) -> Any:
        if value is None:
            raise self.NVMLError
        return value

    def nvmlInit(self) -> None:
        self._known(self.works or None)

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        return uuid

    def nvmlDeviceGetComputeRunningProcesses(self, handle: str) -> list[Any]:
        return [SimpleNamespace(pid=pid) for pid in self._known(self.pids)]

    def nvmlDeviceGetProcessUtilization(self, handle: str, since: int) -> list[Any]:
        self.asked_since.append(since)
        used = self._known(self.samples)
        return [SimpleNamespace(pid=pid, smUtil=share, timeStamp=1000) for pid, share in used.items()]

    def nvmlDeviceGetClockInfo(self, handle: str, kind: int) -> int:
        return int(self._known(self.mhz))

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, handle: str) -> int:
        return int(self._known(self.reasons))


@pytest.mark.parametrize(
    ("nvml", "expected"),
    [
        (Nvml([7], {7: 99}, 0, 1980), GpuState(0, 0.0, 1980, ())),
        (Nvml([7, 8, 9], {7: 60, 8: 25, 9: 5}, 0x01, 1980), GpuState(2, 0.30, 1980, ())),
        # An idle process of somebody else takes memory and no time.
        (Nvml([7, 8], {7: 99, 8: 0}, 0x04, 1700), GpuState(1, 0.0, 1700, ())),
        (Nvml([7], {7: 9}, 0x28, 900), GpuState(0, 0.0, 900, ("hardware slowdown", "heat"))),
        # In a container the driver's ids are those of the host.
        (Nvml([4711, 4712], {4711: 50}, 0, 1980), GpuState(1, None, 1980, ())),
        (Nvml([7, 8], None, None, None), GpuState(1, None, None, ())),
        (Nvml(), GpuState(None, None, None, ())),
    ],
)
def test_a_look_tells_others_from_the_run(nvml: Nvml, expected: GpuState) -> None:
    assert GpuWatch(nvml, "GPU-f00", [7])() == expected


def test_each_look_asks_for_what_was_used_since_the_last_one() -> None:
    nvml = Nvml([7, 8], {8: 10}, 0, 1980)
    look = GpuWatch(nvml, "GPU-f00", [7])
    look()
    look()
    assert nvml.asked_since == [0, 1000]


def test_a_newer_library_has_another_name_for_the_reasons() -> None:
    nvml: Any = Nvml([7], {}, 0, 1980)
    nvml.nvmlDeviceGetCurrentClocksEventReasons = lambda handle: 0x80
    assert GpuWatch(nvml, "GPU-f00", [7])().slowdowns == ("power brake",)


def test_without_nvml_nothing_is_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert gpu_watch("f00") is None
    monkeypatch.setitem(sys.modules, "pynvml", Nvml(works=False))
    assert gpu_watch("f00") is None
    monkeypatch.setitem(sys.modules, "pynvml", Nvml([os.getpid()], {}, 0, 1980))
    found = gpu_watch("f00")
    assert found is not None
    assert found().num_others == 0
