"""Tiny models are fastest on one thread: several mostly wait for one another."""

import os
import tempfile

import pytest

# Before torch is imported, and for the processes that tests start.
os.environ["OMP_NUM_THREADS"] = "1"
# Nothing here is about seconds: tests need not wait for what is timed on this machine, nor for one another.
os.environ["SPECBENCH_LOCKS"] = tempfile.mkdtemp()


@pytest.fixture(autouse=True)
def _no_secrets_of_other_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    from harness.system import secrets

    monkeypatch.setattr(secrets, "_learned", set())
