"""Servers that are started here: ports, logs, deaths, and that none is left."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import ClassVar

import psutil
import pytest
from typing_extensions import override

from harness.analysis.summary import summarise
from harness.config import ConfigError, configurable
from harness.engines.clients.openai_client import OpenAIClient
from harness.engines.clients.streams import Client
from harness.engines.engine import Note
from harness.engines.faults import EngineFault
from harness.engines.servers import process
from harness.engines.servers.launched import LaunchedEngine
from harness.engines.servers.process import ServerProcess
from harness.engines.servers.served import ServedArm
from tests.engines.servers.measuring import measured, plan_of, stored
from tests.support.openai_server import MODEL

SCRIPT = Path(__file__).parents[2] / "support" / "openai_server.py"


@configurable
class Started(LaunchedEngine):
    """Starts the made-up server of the tests."""

    name: ClassVar[str] = "started"
    packages: ClassVar[tuple[str, ...]] = ("no-such-package", "pytest")

    @override
    def command(self, arm: ServedArm, location: str, port: str) -> list[str]:
        burst = str(arm.settings.get("burst", 1))
        extra = self.arguments if arm.settings else []
        return [str(SCRIPT), "--port", port, "--burst", burst, *extra]

    @override
    def location(self, note: Note) -> str:
        return "nowhere"

    @override
    def client(self, name: str, url: str) -> Client:
        return OpenAIClient(url, MODEL, silence_s=self.silence_s)


def left() -> list[str]:
    """Command lines of what this process has started and still runs, but for other tests' W&B service."""
    found = psutil.Process().children(recursive=True)
    lines = [" ".join(one.cmdline()) for one in found if one.status() != psutil.STATUS_ZOMBIE]
    return [line for line in lines if "wandb-core" not in line]


def server(folder: Path, *more: str, **options: float) -> ServerProcess:
    def command(port: int) -> list[str]:
        return [sys.executable, str(SCRIPT), "--port", str(port), *more]

    return ServerProcess("x", command, folder / "x.log", **options)  # type: ignore[arg-type]


def listens(url: str) -> bool:
    with socket.socket() as one:
        return one.connect_ex(("127.0.0.1", int(url.rpartition(":")[2]))) == 0


def test_a_run_starts_a_server_per_arm_keeps_their_logs_and_leaves_none(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, "engine=started")
    run = measured(plan)
    assert run.finished
    assert {one.verdict.kind for one in run.records if one.verdict} == {"identical"}
    assert left() == []
    logs = sorted((Path(run.folder) / "logs").iterdir())
    assert [one.name for one in logs] == ["fast.log", "vanilla.log"]
    assert all("listening" in one.read_text() for one in logs)
    card = run.manifest.arms["fast"]["card"]
    assert card["command"][1:] == ["--port", "PORT", "--burst", "3"]
    assert card["version"] == run.manifest.target["engine_version"] == f"pytest {pytest.__version__}"
    # How other engines are told is no setting of the method itself.
    assert "serve" not in run.manifest.arms["fast"]


def test_a_server_that_dies_is_started_again_and_the_other_blocks_are_measured(tmp_path: Path) -> None:
    arguments = "engine.arguments=[--fault,die,--after,'1']"
    plan = plan_of(tmp_path, "engine=started", arguments, "measure.repeats=1")
    with pytest.raises(EngineFault, match=r"1 of 3 blocks"):
        measured(plan)
    run = stored(plan)
    failed = run.failures[:-1]
    assert [one.kind for one in failed] == ["engine-died"]
    assert "listening" in failed[0].message
    assert len({one.conversation for one in run.records}) == 2
    assert left() == []


def test_a_port_that_is_taken_meanwhile_is_replaced_by_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        ports = iter([taken.getsockname()[1], process.free_port()])
        monkeypatch.setattr(process, "free_port", lambda: next(ports))
        one = server(tmp_path)
        # Who has the port answers, but it is not our server, which has ended by then.
        one.start(lambda url: listens(url) and one.port != taken.getsockname()[1])
        assert one.port != taken.getsockname()[1]
        one.stop()
    assert "Address already in use" in one.log.read_text()
    assert left() == []


def test_a_server_that_is_not_ready_in_time_is_ended(tmp_path: Path) -> None:
    with pytest.raises(EngineFault, match=r"not ready after 0\.3 s; type engine\.start_s=SECONDS"):
        server(tmp_path, "--slow", "60", start_s=0.3).start(listens)
    assert left() == []


def test_a_server_that_ends_at_once_is_told_with_its_last_words(tmp_path: Path) -> None:
    with pytest.raises(
        EngineFault, match=r"ended before it was ready \(exit status 2\).*unrecognized"
    ) as told:
        server(tmp_path, "--nonsense").start(listens)
    assert told.value.kind == "engine-died"
    assert left() == []


def test_what_a_server_has_started_ends_with_it_also_in_a_session_of_its_own(tmp_path: Path) -> None:
    one = server(tmp_path, "--children")
    one.start(listens)
    assert len(left()) == 3  # the guard, the server and its worker
    one.pause()
    one.stop()
    assert left() == []


HOLDER = """
import sys, time
from pathlib import Path
sys.path[:0] = sys.argv[2:]
from tests.engines.servers.test_launched import listens, server
one = server(Path(sys.argv[1]), "--children")
one.start(listens)
print("ready", flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_no_server_outlives_a_harness_that_is_killed(tmp_path: Path, number: signal.Signals) -> None:
    command = [sys.executable, "-c", HOLDER, str(tmp_path), str(Path(__file__).parents[3])]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=tmp_path) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"ready\n"
        below = psutil.Process(holder.pid).children(recursive=True)
        assert len(below) == 3
        os.kill(holder.pid, number)
    _, alive = psutil.wait_procs(below, timeout=20)
    deadline = time.monotonic() + 5
    while any(one.is_running() and one.status() != psutil.STATUS_ZOMBIE for one in alive):
        assert time.monotonic() < deadline, [one.cmdline() for one in alive]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("engine=vllm", "method=[pia]"), r"methods\.pia: engine=vllm has no such method.*~methods\.pia"),
        (("engine=sglang", "method=[suffix]"), r"methods\.suffix: engine=sglang has no such method.*vllm"),
    ],
)
def test_a_method_that_an_engine_does_not_have_is_refused_by_name(
    tmp_path: Path, overrides: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        plan_of(tmp_path, *overrides)


def test_an_environment_without_the_engine_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    for python, message in (("/no/such/python", "cannot be run"), (sys.executable, "has no package vllm")):
        plan = plan_of(tmp_path, "engine=vllm", "method=[ngram]", f"engine.python={python}")
        with pytest.raises(ConfigError, match=message):
            measured(plan)


def test_an_engine_as_a_rung_is_timed_beside_our_loop_and_rests_meanwhile(tmp_path: Path) -> None:
    rung = "{_target_: harness.engines.servers.rung.EngineRung, name: other, engine: {_target_: %s}}"
    target = "tests.engines.servers.test_launched.Started"
    plan = plan_of(tmp_path, "method=[ngram]", "ladder=none", f"+rungs.other={rung % target}")
    states: list[str] = []
    asked = plan.arms["ngram"].propose  # type: ignore[attr-defined]

    def watched(*given: object) -> object:
        below = psutil.Process().children(recursive=True)
        states.extend(one.status() for one in below if str(SCRIPT) in one.cmdline()[1:2])
        return asked(*given)

    plan.arms["ngram"].propose = watched  # type: ignore[attr-defined]
    run = measured(plan)
    assert run.finished
    assert set(states) == {psutil.STATUS_STOPPED}
    timed = [one for one in run.records if one.arm == "other"]
    assert timed
    assert {one.kind for one in timed} == {"rung"}
    assert all(one.total_ns > 0 for one in timed)
    # Its tokens are made up: too many differences for the rounding of other kernels.
    assert {one.verdict.kind for one in timed if one.verdict} == {"unexplained"}
    assert {row.method: row.verdict for row in summarise([run])}["other"] == "broken"
    assert left() == []
