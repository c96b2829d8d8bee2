"""What a server is allowed to do."""

from __future__ import annotations

from pydantic import Field

from harness.config import configurable


@configurable
class ServerSettings:
    """Where the server listens, and what it takes in."""

    host: str = "127.0.0.1"
    """The loopback interface by default: there is no password, and whoever reaches the port can keep the
    machine busy."""
    port: int = Field(default=8000, ge=0, le=65535)
    """0 takes a free one."""
    name: str = ""
    """The model's name in the API; "" is the target's."""
    batch_size: int = Field(default=1, ge=1)
    """Sequences that run at the same time. Requests that wait together and draw tokens alike form a batch; a
    later one waits until it has ended."""
    max_waiting: int = Field(default=256, ge=1)
    """Requests that may wait; one more is refused with status 503."""
    max_request_bytes: int = Field(default=4_000_000, ge=1024)
    """A larger request is refused with status 413."""
    choose_steps: bool = True
    """Whether the steps of the target are timed at the start, so that the fastest kinds are used."""
