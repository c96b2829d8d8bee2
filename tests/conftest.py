"""Tiny models are fastest on one thread: several mostly wait for one another."""

from __future__ import annotations

import os
import tempfile
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest

if TYPE_CHECKING:
    from harness.store.records import BlockLoad

# Before torch is imported, and for the processes that tests start.
os.environ["OMP_NUM_THREADS"] = "1"
# Nothing here is about seconds: tests need not wait for what is timed on this machine, nor for one another.
os.environ["SPECBENCH_LOCKS"] = tempfile.mkdtemp()


# A slow example is no failure: other programs may keep the machine busy.
hypothesis.settings.register_profile("busy machine", deadline=None)
hypothesis.settings.load_profile("busy machine")


@pytest.fixture(autouse=True)
def _no_secrets_of_other_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    from harness.system import secrets

    monkeypatch.setattr(secrets, "_learned", set())


@pytest.fixture(autouse=True)
def _this_machine_is_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other programs on this machine disturb no block, so no test measures one again because of them.

    Tests of noise say themselves what a block finds, by a watch of their own.
    """
    from harness.benchmark import experiment
    from harness.benchmark.noise.watch import LoadWatch, watch_of

    class QuietWatch(LoadWatch):
        def end(self, block: str) -> BlockLoad:
            return replace(super().end(block), causes={}, void="")

    def quiet(*given: Any) -> LoadWatch | None:
        watch = watch_of(*given)
        if watch:
            watch.__class__ = QuietWatch
        return watch

    monkeypatch.setattr(experiment, "watch_of", quiet)
