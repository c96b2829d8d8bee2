"""A configuration turned into a server: the target is loaded, the method bound, and the port opened."""

from __future__ import annotations

import ipaddress
import json
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import uvicorn
from omegaconf import DictConfig, OmegaConf

from harness.config import ConfigError, build
from harness.decoding.acceptance import Acceptor
from harness.drafting.drafter import Drafter
from harness.engines.engine import Workload
from harness.engines.local import Local
from harness.serve.app import Service, make_app
from harness.serve.decoding import Decoder, StreamingLoop
from harness.serve.settings import ServerSettings
from harness.system.console import Console
from harness.target.chat_template import render
from harness.target.spec import TargetSpec

_START_S = 10.0
_POLL_S = 0.02


@dataclass(frozen=True, kw_only=True)
class Serving:
    """A server that is ready to listen."""

    settings: ServerSettings
    name: str
    """The model's name in the API."""
    decoder: Decoder
    app: Any


def prepared(config: DictConfig, note: Callable[[str], None]) -> Serving:
    """Load the target, bind the method and choose the steps.

    Raises:
        ConfigError: more than one method is chosen, or something does not fit.
    """
    settings: ServerSettings = build(config.serve, "serve")
    target: TargetSpec = build(config.target, "target")
    acceptor: Acceptor = build(config.acceptor, "acceptor")
    name, drafter = _method(config)
    acceptor.load()
    engine = Local()
    engine.refuse({name: drafter}, {}, acceptor)
    model = engine.load(target, {name: drafter}, note)
    workload = Workload(
        batch_size=settings.batch_size,
        timed=settings.choose_steps,
        longest_sequence=lambda: model.max_context,
    )
    engine.prepare(workload, note)
    decoder = Decoder(
        engine.loop(StreamingLoop), drafter, acceptor, settings.batch_size, settings.max_waiting
    )
    served = settings.name or target.name
    service = Service(
        name=served,
        decoder=decoder,
        tokenizer=model.tokenizer,
        render=lambda messages: render(model.tokenizer, messages, target.chat),
        max_context=model.max_context,
        vocab_size=model.vocab_size,
    )
    app = make_app(service, decoder, settings.max_request_bytes)
    return Serving(settings=settings, name=served, decoder=decoder, app=app)


def _method(config: DictConfig) -> tuple[str, Drafter]:
    """The method that is served: the only one that is chosen, else vanilla."""
    nodes: Any = OmegaConf.to_container(config.methods, resolve=True)
    chosen = [str(name) for name in nodes if name != "vanilla"] or list(nodes)
    if len(chosen) != 1:
        raise ConfigError(
            f"method: a server has one, not {len(chosen)} ({', '.join(chosen)}); type method=[NAME]"
        )
    drafter: Drafter = build(nodes[chosen[0]], f"methods.{chosen[0]}")
    return chosen[0], drafter


class Listener:
    """The HTTP server in a thread of its own; decoding keeps the thread that called it."""

    def __init__(self, serving: Serving) -> None:
        """Bind the port.

        Raises:
            ConfigError: it is taken, or the host is not one of this machine.
        """
        settings = serving.settings
        family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
        self._socket = socket.socket(family)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            self._socket.bind((settings.host, settings.port))
        except OSError as error:
            self._socket.close()
            raise ConfigError(
                f"serve.host={settings.host} serve.port={settings.port}: cannot be had ({error}); type"
                " serve.port=0 for a free one"
            ) from error
        host = f"[{settings.host}]" if family == socket.AF_INET6 else settings.host
        self.url = f"http://{host}:{self._socket.getsockname()[1]}"
        self._server = uvicorn.Server(
            uvicorn.Config(serving.app, log_level="warning", access_log=False, timeout_graceful_shutdown=5)
        )
        self._thread = threading.Thread(target=self._server.run, args=([self._socket],), daemon=True)

    def start(self) -> None:
        """Listen; returns once requests are taken."""
        self._thread.start()
        deadline = time.monotonic() + _START_S
        while not self._server.started:
            if not self._thread.is_alive() or time.monotonic() > deadline:
                raise ConfigError(f"{self.url}: the HTTP server did not start")
            time.sleep(_POLL_S)

    def stop(self) -> None:
        """Take no more requests, and give the port back."""
        self._server.should_exit = True
        self._thread.join(timeout=_START_S)
        self._socket.close()


def run_server(config: DictConfig) -> None:
    """Serve until the process is interrupted.

    Raises:
        ConfigError: something cannot be served; the text says what to type instead.
    """
    console = Console()
    with console.watching():
        serving = prepared(config, console.note)
        listener = Listener(serving)
    if not _is_loopback(serving.settings.host):
        console.warn(
            f"serve.host={serving.settings.host}: whoever reaches this port can use the model; there is no"
            " password"
        )
    listener.start()
    console.note(f"serving {serving.name} at {listener.url}/v1; Ctrl-C ends it")
    print(json.dumps({"url": listener.url, "model": serving.name}), flush=True)
    try:
        # In this thread, which loaded and compiled: some of torch's state belongs to a thread.
        serving.decoder.serve()
    except KeyboardInterrupt:
        console.note("ended by the user")
    finally:
        listener.stop()


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
