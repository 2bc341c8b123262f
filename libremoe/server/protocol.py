"""HTTP/1.1 on one connection: uvicorn's, over the parser in C (httptools), with the limits that it lacks.

The parser in Python (h11) costs 0.4 ms for a request that is refused, more than all else together, and every event of a
stream pays for it too. llhttp, which httptools wraps, bounds nothing by itself, so the bounds are here.
"""

from __future__ import annotations

import asyncio
import select
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from libremoe.errors import LibremoeError

MAX_HEADER_BYTES = 32 << 10  # of one request's first line and headers; of trailers and the like after it
MAX_CONNECTIONS = 8192  # the next ones are told to come again later
MAX_PIPELINED = 16  # requests that wait for the answer to the one before them
JOINED_BYTES = 16 << 10
CROWDED = "crowded"  # in a request's state: too many connections were open when its own came
IDLE_CHECK_S = 15.0  # a connection that brings no request between two checks is closed


class Protocol(HttpToolsProtocol):
    """Also closes a connection that does not end its headers, and answers nobody who has left."""

    _was_idle = False
    _unparsed = 0  # bytes received since the parser last had something to say
    _header_bytes = 0  # of the request that is being read
    _headers_ended = False  # what comes after them, trailers, is no part of what guards look at

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(_Joined(transport, self.loop))  # type: ignore[arg-type]
        if len(self.connections) > MAX_CONNECTIONS:
            self.app_state = {**self.app_state, CROWDED: True}  # of the requests of this connection
        self._check = self.loop.call_later(IDLE_CHECK_S, self._close_if_idle)

    def connection_lost(self, exc: Exception | None) -> None:
        self._check.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if has_left(self.transport):  # in a flood, most are tired of waiting before their request is looked at
            self.transport.abort()
            return
        self._unparsed += len(data)
        super().data_received(data)
        if self._unparsed > MAX_HEADER_BYTES and not self.transport.is_closing():
            self.send_400_response("The headers are too long.")

    def on_message_begin(self) -> None:
        self._header_bytes, self._headers_ended = 0, False
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._headers_ended:
            self._count(len(name) + len(value))
            super().on_header(name, value)

    def _count(self, n_bytes: int) -> None:
        self._header_bytes += n_bytes
        if self._header_bytes > MAX_HEADER_BYTES:
            raise LibremoeError("the headers are too long")  # the parser stops, and the answer is a 400

    def on_headers_complete(self) -> None:
        self._unparsed, self._headers_ended = 0, True
        super().on_headers_complete()
        if len(self.pipeline) > MAX_PIPELINED:
            self.transport.abort()
            raise LibremoeError("too many requests at once on one connection")

    def on_body(self, body: bytes) -> None:
        self._unparsed = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._unparsed = 0
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        if self.cycle is not None and not self.cycle.response_complete:  # it must not land within that answer
            self.transport.abort()
            return
        super().send_400_response(msg)

    def _close_if_idle(self) -> None:
        idle = self.cycle is None or self.cycle.response_complete
        if idle and self._was_idle:
            self.transport.close()
            return
        self._was_idle = idle
        self._check = self.loop.call_later(IDLE_CHECK_S, self._close_if_idle)


class _Joined:
    """A transport that sends what is written within one turn of the loop in one piece, as an answer's head and body."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop):
        self._transport, self._loop = transport, loop
        self._held: list[bytes] = []
        self._held_bytes = 0

    def write(self, content: bytes) -> None:
        if not self._held:
            self._loop.call_soon(self._flush)
        self._held.append(content)
        self._held_bytes += len(content)
        if self._held_bytes > JOINED_BYTES:  # or a writer would not be told to wait for a slow reader
            self._flush()

    def _flush(self) -> None:
        if self._held:
            content, self._held, self._held_bytes = b"".join(self._held), [], 0
            self._transport.write(content)

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


def has_left(transport: asyncio.Transport) -> bool:
    """Whether the peer has closed its side, though what it sent before may still be unread. False where unknown."""
    if not hasattr(select, "POLLRDHUP"):  # Linux has it
        return False
    poll = select.poll()
    poll.register(transport.get_extra_info("socket").fileno(), select.POLLRDHUP)
    return bool(poll.poll(0))
