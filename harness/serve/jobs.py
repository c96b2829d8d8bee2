"""A request on its way from the event loop, where clients are heard, to the thread that decodes, and back."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from harness.decoding.batch import Generation, Request
from harness.decoding.sampling import DecodingParams


class Progress(NamedTuple):
    """What became known of an answer: further tokens, and at last how it ended or why it could not."""

    ids: Sequence[int] = ()
    ended: Generation | None = None
    error: Exception | None = None


@dataclass(kw_only=True)
class Job:
    """One request; the event loop owns it, the decoding thread reports to it."""

    request: Request
    params: DecodingParams
    loop: asyncio.AbstractEventLoop
    progress: asyncio.Queue[Progress] = field(default_factory=asyncio.Queue)
    cancelled: bool = False
    """Set when nobody listens any more; its place is then given to another request."""

    def report(self, progress: Progress) -> None:
        """Tell the event loop, from another thread."""
        if not self.loop.is_closed():
            self.loop.call_soon_threadsafe(self.progress.put_nowait, progress)
