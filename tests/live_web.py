"""A web on loopback: one server that answers for every host name, a resolver that lies as it is told, and a spy that
sees where connections go and leads those to public addresses to the server."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterable
from typing import Any
from unittest import mock

import httpcore2

PUBLIC = "93.184.216.34"
PUBLIC_V6 = "2606:2800:220:1::1"
Answer = bytes | Callable[["Asked", asyncio.StreamWriter], Awaitable[None]]


class Asked:
    """A request as it arrived. headers: names in lower case."""

    def __init__(self, head: bytes):
        first, *lines = head.decode("latin-1").strip().split("\r\n")
        self.method, self.target, _ = first.split(" ")
        self.headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in lines)}
        self.url = f"http://{self.headers['host']}{self.target}"


def answer(body: bytes | str, kind: str = "text/html; charset=utf-8", status: int = 200, **headers: str) -> bytes:
    data = body.encode() if isinstance(body, str) else body
    lines = [f"HTTP/1.1 {status} X", f"Content-Type: {kind}", f"Content-Length: {len(data)}", "Connection: close"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + data


def redirect(to: str, status: int = 302) -> bytes:
    return answer("", status=status, Location=to)


class Web:
    """async with Web() as web: web.pages[url without query] = answer. asked: what came. connected: (address, port)."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.tls = tls
        self.pages: dict[str, Answer] = {}
        self.asked: list[Asked] = []
        self.connected: list[tuple[str, int]] = []
        self.names: dict[str, list[list[str]]] = {}  # host -> its answers in turn, the last for good
        self.resolved: list[str] = []

    async def __aenter__(self) -> Web:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self.tls)
        self.port = self._server.sockets[0].getsockname()[1]
        real = httpcore2.AnyIOBackend.connect_tcp

        async def spy(backend: Any, host: str, port: int, timeout: float | None = None,
                      local_address: str | None = None, socket_options: Iterable[Any] | None = None) -> Any:
            self.connected.append((host, port))
            if host in (PUBLIC, PUBLIC_V6) or (host, port) == ("127.0.0.1", self.port):
                return await real(backend, "127.0.0.1", self.port, timeout)
            raise httpcore2.ConnectError("the spy does not let it through")

        self._patch = mock.patch.object(httpcore2.AnyIOBackend, "connect_tcp", spy)
        self._patch.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._patch.stop()
        self._server.close()

    async def resolve(self, host: str, port: int) -> list[str]:
        self.resolved.append(host)
        if host in self.names:
            answers = self.names[host]
            return answers.pop(0) if len(answers) > 1 else answers[0]
        try:
            return [socket.inet_ntoa(socket.inet_aton(host))]  # 127.1 and its like, as the system reads them
        except OSError:
            pass
        try:
            return [str(ipaddress.ip_address(host))]
        except ValueError:
            return [PUBLIC]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            asked = Asked(await reader.readuntil(b"\r\n\r\n"))
            self.asked.append(asked)
            found = self.pages.get(asked.url.split("?")[0], answer("nothing here", status=404))
            if isinstance(found, bytes):
                writer.write(found)
                await writer.drain()
            else:
                await found(asked, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()
