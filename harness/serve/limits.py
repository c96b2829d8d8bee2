"""The size of a request, limited before anybody keeps or parses it."""

from __future__ import annotations

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from harness.serve.api import failure


class SizeLimit:
    """ASGI middleware that refuses a body of more than `most` bytes with status 413.

    A body that states its length is refused at once; one that does not is counted as it comes.
    """

    def __init__(self, app: ASGIApp, most: int) -> None:
        self._app, self._most = app, most

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        why = f"the request has more than {self._most} bytes"
        stated = dict(scope["headers"]).get(b"content-length", b"0")
        if not stated.isdigit() or int(stated) > self._most:
            await JSONResponse(failure(why), 413)(scope, receive, send)
            return
        num_bytes = 0

        async def counted() -> Message:
            nonlocal num_bytes
            message = await receive()
            num_bytes += len(message.get("body", b""))
            if num_bytes > self._most:
                raise HTTPException(413, why)
            return message

        await self._app(scope, counted, send)
