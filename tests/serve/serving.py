"""A server of ours in threads of this process."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from hydra import compose, initialize_config_module

from harness.serve.job import Listener, Serving, prepared


@contextmanager
def running(*overrides: str) -> Iterator[tuple[str, Serving]]:
    """The URL of a server of a tiny target while the block runs."""
    given = ["target=tiny", "serve.port=0", "serve.choose_steps=false", *overrides]
    with initialize_config_module("conf", version_base="1.3"):
        serving = prepared(compose("serve", overrides=given), lambda _: None)
    listener = Listener(serving)
    listener.start()
    decoding = threading.Thread(target=serving.decoder.serve)
    decoding.start()
    try:
        yield listener.url, serving
    finally:
        serving.decoder.stop()
        decoding.join()
        listener.stop()
