"""The base of engines that are started here, one server per arm, and end with the run."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from abc import abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import httpx2
from pydantic import Field
from typing_extensions import override

from harness.config import ConfigError, configurable
from harness.engines.clients.streams import Client
from harness.engines.engine import Method, Note, ServedModel, Workload
from harness.engines.faults import EngineFault
from harness.engines.servers.process import ServerProcess
from harness.engines.servers.served import ServedArm, ServedEngine
from harness.system import provenance
from harness.system.machine_lock import units_of
from harness.system.naming import slug
from harness.target.spec import TargetSpec

_MAX_STARTS = 4
"""Starts of one arm's server; whatever ends it so often will end it again."""
_NOTICED_S = 3.0
"""Seconds in which the end of a process is noticed after that of its connections."""
_VERSION = """
import sys
from importlib import metadata
names = {one.metadata["Name"].lower(): one.version for one in metadata.distributions()}
print(next(f"{name} {names[name]}" for name in sys.argv[1:] if name in names))
"""
"""Prints the first of some packages that an environment has."""
PORT = "PORT"
"""Stands in the command of a card for the port, which every start chooses anew."""


@configurable
class LaunchedEngine(ServedEngine):
    """Starts a server for each arm on the loopback interface, and ends it with the run however that ends."""

    packages: ClassVar[tuple[str, ...]]
    """The Python packages that the engine may come as, in the environment of `python`."""
    python: str = ""
    """The Python interpreter of the engine's own environment; "" is this one."""
    arguments: list[str] = Field(default_factory=list)
    """Further arguments of its command line, for all arms."""
    environment: dict[str, str] = Field(default_factory=dict)
    """Further environment variables of its processes."""
    start_s: float = Field(default=900.0, gt=0)
    """Seconds in which a server has to become ready."""
    servers: Literal["all", "one"] = "all"
    """`all` keeps the servers of all arms, and on a CPU stops the processes of those that are not measured;
    `one` has one at a time, for a GPU that holds no two, and starts anew whenever the arm changes: choose
    blocks of many requests with it (measure.batch_size, measure.waves)."""

    @abstractmethod
    def command(self, arm: ServedArm, location: str, port: str) -> list[str]:
        """The command line of an arm's server, without the interpreter.

        location: folder or hub id of the target.

        Raises:
            ConfigError: the settings of the arm are not what this engine takes.
        """

    @abstractmethod
    def client(self, name: str, url: str) -> Client:
        """The client for a server of this engine."""

    health: ClassVar[str] = "/health"
    """The path that answers with status 200 once the server is ready."""

    @property
    def interpreter(self) -> str:
        """The interpreter that runs the servers."""
        return str(Path(self.python).expanduser()) if self.python else sys.executable

    @override
    def device_facts(self, target: TargetSpec) -> dict[str, Any]:
        return provenance.device_facts(target.resolved_device())

    @override
    def units(self, target: TargetSpec) -> list[str]:
        return units_of(target.resolved_device(), target.device_map is not None)

    @override
    def load(self, target: TargetSpec, arms: Mapping[str, Method], note: Note) -> ServedModel:
        self._processes: dict[str, ServerProcess] = {}
        self._starts: Counter[str] = Counter()
        self._logs = Path(tempfile.gettempdir())
        self._version = self.installed_version()
        return super().load(target, arms, note)

    @override
    def prepare(self, workload: Workload, note: Note) -> None:
        super().prepare(workload, note)
        location = self.location(note)
        for arm in self._arms.values():
            arm.loaded = {
                "engine": self.name,
                "version": self._version,
                "command": self.command(arm, location, PORT),
                "environment": dict(self.environment),
            }

    def installed_version(self) -> str:
        """The version of the engine's package in its environment.

        Raises:
            ConfigError: there is no such interpreter, or it has no such package.
        """
        remedy = "make an environment for it, type engine.python=FOLDER/bin/python; see docs/engines.md"
        try:
            found = subprocess.run(
                [self.interpreter, "-c", _VERSION, *self.packages],
                capture_output=True,
                text=True,
                check=False,
            )
        except OSError as error:
            raise ConfigError(f"engine.python={self.python}: cannot be run ({error}); {remedy}") from error
        if found.returncode:
            raise ConfigError(
                f"engine={self.name}: {self.interpreter} has no package {self.packages[0]}; {remedy}"
            )
        return found.stdout.strip()

    @override
    def facts(self) -> dict[str, Any]:
        return {"engine": self.name, "engine_version": self._version}

    def location(self, note: Note) -> str:
        """Where the servers read the target from.

        Raises:
            ConfigError: the target has random weights, which only this process has.
        """
        if self.outline.location is None:
            raise ConfigError(
                f"target.weights=random: engine={self.name} reads weights from files; type"
                " target=smollm2_135m, or target=hub target.path=FOLDER"
            )
        return self.outline.location

    @override
    def ready(self, name: str) -> Client:
        process = self._processes.get(name)
        if process is None or not process.is_running:
            self._forget(name)
            if self.servers == "one":
                for other in list(self._processes):
                    self._forget(other)
            process = self._started(name)
        self._focus(name)
        if name not in self._clients:
            self._clients[name] = self.client(name, process.url)
        return self._clients[name]

    def _started(self, name: str) -> ServerProcess:
        self._starts[name] += 1
        if self._starts[name] > _MAX_STARTS and self.servers == "all":
            raise EngineFault(
                "engine-died", f"{name}: its server ended {_MAX_STARTS} times; see {self._logs}", fatal=True
            )
        location, arm = self.location(self._note), self._arms[name]
        process = self._processes[name] = ServerProcess(
            name,
            lambda port: [self.interpreter, *self.command(arm, location, str(port))],
            self._logs / f"{slug(name)}.log",
            environment={**os.environ, **self.environment},
            start_s=self.start_s,
        )
        for other, one in self._processes.items():
            if other != name:
                one.pause()
        process.start(self._is_ready)
        return process

    def _is_ready(self, url: str) -> bool:
        try:
            return httpx2.get(f"{url}{self.health}", timeout=5.0, trust_env=False).status_code == 200
        except httpx2.HTTPError:
            return False

    def _focus(self, name: str) -> None:
        """Let the server of this arm run, and on a CPU no other one."""
        if self._spec.resolved_device().type != "cpu":
            return
        for other, one in self._processes.items():
            if other != name:
                one.pause()
        self._processes[name].resume()

    def rest(self) -> None:
        """Stop the processes of all servers until one of them is asked again."""
        for one in self._processes.values():
            one.pause()

    @override
    def known(self, name: str, fault: EngineFault) -> EngineFault:
        process = self._processes[name]
        deadline = time.monotonic() + _NOTICED_S
        while fault.kind in ("engine-cut-off", "engine-refused", "engine-silent") and process.is_running:
            if time.monotonic() > deadline:
                break
            time.sleep(0.05)
        text = f"{name}: {fault}. The end of {process.log}: {process.tail()}"
        if not process.is_running:
            # Another one is started for the next block.
            return EngineFault("engine-died", text)
        if fault.kind == "engine-silent":
            self._forget(name)
        return EngineFault(fault.kind, text, fault.fatal)

    def _forget(self, name: str) -> None:
        """End the server of an arm, if it has one."""
        if client := self._clients.pop(name, None):
            self._run(client.close())
        if process := self._processes.pop(name, None):
            process.stop()

    @override
    def close(self) -> None:
        for name in list(getattr(self, "_processes", ())):
            self._forget(name)
        super().close()


def flags(settings: Mapping[str, Any], names: Mapping[str, str], where: str) -> list[str]:
    """Command-line flags of settings; None is left out, true is a flag without a value.

    names: the flag of each setting that the engine takes.

    Raises:
        ConfigError: there is another setting.
    """
    found: list[str] = []
    for key, value in settings.items():
        if key not in names:
            raise ConfigError(f"{where}.{key}: unknown key. Allowed: {', '.join(names)}")
        if value is None or value is False:
            continue
        found += [names[key]] if value is True else [names[key], str(value)]
    return found


def only(settings: Mapping[str, Any], allowed: Sequence[str], where: str) -> dict[str, Any]:
    """The settings that are not None.

    Raises:
        ConfigError: there is one that is not allowed.
    """
    for key in settings:
        if key not in allowed:
            raise ConfigError(f"{where}.{key}: unknown key. Allowed: {', '.join(allowed)}")
    return {key: value for key, value in settings.items() if value is not None}
