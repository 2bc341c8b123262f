"""Server-sent events, and clients that leave. A stream that is silent says that it lives; one that nobody reads
ends."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any, TypeVar

from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from libremoe.server.errors import ApiError
from libremoe.server.service import Service

T = TypeVar("T")
COMMENT = b": ping\n\n"
ANTHROPIC_PING = b'event: ping\ndata: {"type": "ping"}\n\n'

log = logging.getLogger(__name__)


class Gone(Exception):
    """The client left before its answer was ready; nobody will read what we say."""


def event(data: Any, name: str | None = None) -> bytes:
    """One event; data is JSON, or "[DONE]"."""
    text = data.encode() if isinstance(data, str) else to_json(data)
    return (f"event: {name}\n" if name else "").encode() + b"data: " + text + b"\n\n"


async def disconnected(receive: Receive) -> None:
    """Returns when the client has left."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def unless_gone(service: Service, request: Request, work: Awaitable[T]) -> T:
    """Await work, but cancel it, and raise Gone, as soon as the client leaves. The body must have been read."""
    task = asyncio.ensure_future(work)
    watch = asyncio.ensure_future(disconnected(request.receive))
    try:
        await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            service.metrics.disconnects.inc()
            raise Gone
        return task.result()
    finally:
        for each in (task, watch):
            each.cancel()
        await asyncio.gather(task, watch, return_exceptions=True)


class EventStream(Response):
    """Sends events as they come. events is closed in every case: when it ends, fails, or the client leaves.

    on_error: the last events after a failure, when the status line has long been sent.
    """

    media_type = "text/event-stream"

    def __init__(self, service: Service, events: AsyncGenerator[bytes], on_error: Callable[[ApiError], bytes],
                 ping: bytes = COMMENT):
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self.service = service
        self.events = events
        self.on_error = on_error
        self.ping = ping
        self._sending = asyncio.Lock()
        # Streams that begin together must not say all at once that they live.
        self._last = time.monotonic() - random.random() * service.settings.ping_s / 2

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        writer = asyncio.create_task(self._write(send))
        pinger = asyncio.create_task(self._ping(send))
        watch = asyncio.create_task(disconnected(receive))
        try:
            await asyncio.wait({writer, pinger, watch}, return_when=asyncio.FIRST_COMPLETED)
            if not writer.done():
                self.service.metrics.disconnects.inc()
        finally:
            for task in (writer, pinger, watch):
                task.cancel()
            await asyncio.gather(writer, pinger, watch, return_exceptions=True)
            await self.events.aclose()
        if not writer.cancelled() and (error := writer.exception()) and not isinstance(error, OSError | TimeoutError):
            raise error

    async def _write(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        try:
            async for chunk in self.events:
                await self._send(send, chunk)
        except ApiError as error:
            await self._send(send, self.on_error(error))
        except (OSError, TimeoutError):
            raise
        except Exception:  # this request's failure, not the server's
            log.exception("a stream failed")
            await self._send(send, self.on_error(ApiError(500, "the server failed while it answered")))
        async with self._sending:
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send(self, send: Send, chunk: bytes) -> None:
        async with self._sending, asyncio.timeout(self.service.settings.send_timeout_s):
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        self._last = time.monotonic()

    async def _ping(self, send: Send) -> None:
        every_s = self.service.settings.ping_s
        while True:
            await asyncio.sleep(max(0.01, self._last + every_s - time.monotonic()))
            if time.monotonic() - self._last >= every_s:
                await self._send(send, self.ping)
