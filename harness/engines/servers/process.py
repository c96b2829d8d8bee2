"""A server that is started here: its port, its log, when it is ready, and its end."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

import psutil

from harness.engines.faults import EngineFault
from harness.system.progress import waiting
from harness.system.secrets import redact_text

GUARD = Path(__file__).with_name("guard.py")
_POLL_S = 0.2
_TAIL_BYTES, _TAIL_LINES = 20_000, 12
_END_S = 20.0
"""Seconds for the guard to end its server; it kills after half of them."""
_TAKEN = ("address already in use", "address in use", "errno 98", "couldn't bind")


def free_port() -> int:
    """A TCP port of the loopback interface that nobody has at this moment."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


class ServerProcess:
    """One server below a guard; see `guard`. It holds no port before `start`."""

    def __init__(
        self,
        name: str,
        command: Callable[[int], Sequence[str]],
        log: Path,
        *,
        environment: Mapping[str, str] | None = None,
        start_s: float = 600.0,
        num_tries: int = 3,
    ) -> None:
        """command: makes the command line for a port. start_s: seconds in which it has to become ready.

        num_tries: ports that are tried where one is taken between the choice and the start.
        """
        self.name, self.log = name, log
        self._command, self._environment = command, environment
        self._start_s, self._num_tries = start_s, num_tries
        self._guard: subprocess.Popen[bytes] | None = None
        self.port = 0

    @property
    def url(self) -> str:
        """Where it listens, without a trailing slash."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def is_running(self) -> bool:
        """Whether its process lives."""
        return self._guard is not None and self._guard.poll() is None

    def start(self, is_ready: Callable[[str], bool]) -> None:
        """Start it and wait until `is_ready(url)`.

        Raises:
            EngineFault: it ended, or was not ready in time; with the end of its log.
        """
        for left in reversed(range(self._num_tries)):
            self.port = free_port()
            try:
                self._start_once(is_ready)
                return
            except EngineFault as fault:
                taken = fault.kind == "engine-died" and any(text in self.tail().lower() for text in _TAKEN)
                if not (taken and left):
                    raise

    def _start_once(self, is_ready: Callable[[str], bool]) -> None:
        command = list(self._command(self.port))
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            log.write(f"$ {redact_text(' '.join(command))}\n".encode())
            log.flush()
            self._guard = self._run(command, log)
        begin = time.monotonic()
        with waiting(f"starting the server of {self.name}"):
            while True:
                if not self.is_running:
                    raise self._died("ended before it was ready")
                if is_ready(self.url):
                    return
                if time.monotonic() - begin > self._start_s:
                    text = f"the server of {self.name} was not ready after {self._start_s:g} s"
                    tail = self.tail()
                    self.stop()
                    raise EngineFault(
                        "engine-slow-start",
                        f"{text}; type engine.start_s=SECONDS for more. End of {self.log}: {tail}",
                        fatal=True,
                    )
                time.sleep(_POLL_S)

    def _run(self, command: Sequence[str], log: IO[bytes]) -> subprocess.Popen[bytes]:
        try:
            return subprocess.Popen(
                [sys.executable, str(GUARD), *command],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=None if self._environment is None else dict(self._environment),
                # Ctrl-C is meant for us, who end it in order.
                start_new_session=True,
            )
        except OSError as error:
            text = f"{command[0]}: cannot be started: {error}"
            raise EngineFault("engine-died", text, fatal=True) from error

    def _died(self, how: str) -> EngineFault:
        status = None if self._guard is None else self._guard.poll()
        return EngineFault(
            "engine-died",
            f"the server of {self.name} {how} (exit status {status}). The end of {self.log}: {self.tail()}",
            fatal=True,
        )

    def tail(self) -> str:
        """The last lines of its log, without secrets."""
        with suppress(OSError), self.log.open("rb") as file:
            file.seek(max(0, self.log.stat().st_size - _TAIL_BYTES))
            lines = file.read().decode(errors="replace").splitlines()[-_TAIL_LINES:]
            return redact_text(" | ".join(line.strip() for line in lines if line.strip()))
        return ""

    def pause(self) -> None:
        """Stop its processes until `resume`, so that it takes nothing from the one that is measured."""
        for one in self._processes():
            with suppress(psutil.Error):
                one.suspend()

    def resume(self) -> None:
        """Let its processes run again."""
        for one in self._processes():
            with suppress(psutil.Error):
                one.resume()

    def _processes(self) -> list[psutil.Process]:
        """The server and what it started; the guard must always run."""
        if self._guard is None:
            return []
        with suppress(psutil.Error):
            return psutil.Process(self._guard.pid).children(recursive=True)
        return []

    def stop(self) -> None:
        """End it with all that it started."""
        guard, self._guard = self._guard, None
        if guard is None:
            return
        if guard.stdin is not None:
            with suppress(OSError):
                guard.stdin.close()
        try:
            guard.wait(timeout=_END_S)
        except subprocess.TimeoutExpired:
            # The kernel kills the server with its guard.
            guard.kill()
            guard.wait()
