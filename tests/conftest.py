"""Tiny models are fastest on one thread: several mostly wait for one another."""

import os
import tempfile

import hypothesis
import pytest

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
