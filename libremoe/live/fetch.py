"""The one way out: every byte of the live mode leaves through a Fetcher, and every socket is opened by `_Opener`.

A request is written into the ledger first. Its host is resolved once, all its addresses are checked, and the connection
goes to a checked address, under the host's own name for TLS and the Host header; nothing is asked twice, so that a name
which changes its mind gains nothing. Each redirect is a new request, with all checks. A connection serves one request:
a kept one would be a way past the checks.
"""

from __future__ import annotations

import asyncio
import ssl
import time
import zlib
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import httpcore2
import httpx2

from libremoe.live.addresses import Place, Refused, Resolver, checked_addresses, resolve
from libremoe.live.ledger import Ledger

REDIRECTS = (301, 302, 303, 307, 308)
TEXTS = ("text/html", "application/xhtml+xml", "text/plain", "application/json", "application/xml", "text/xml",
         "application/rss+xml", "application/atom+xml", "application/rdf+xml", "application/feed+json", "text/markdown")


_BROKEN = (httpcore2.TimeoutException, httpcore2.NetworkError, httpcore2.ProtocolError, ssl.SSLError, OSError)


@dataclass(frozen=True)
class Limits:
    """Of one request with its redirects."""

    bytes_in: int = 4 << 20  # on the wire, heads included
    inflated: int = 8 << 20
    header_bytes: int = 32 << 10
    headers: int = 100
    url: int = 4096
    redirects: int = 5
    seconds: float = 15.0
    connect_s: float = 5.0


DEFAULT = Limits()


@dataclass(frozen=True)
class Fetched:
    """An answer. url: of the last redirect. headers: names in lower case. body: inflated. fetched_at: Unix s."""

    url: str
    status: int
    headers: dict[str, str]
    body: bytes
    fetched_at: float

    @property
    def content_type(self) -> str:
        return self.headers.get("content-type", "").split(";")[0].strip().lower()


class _Stream(httpcore2.AsyncNetworkStream):
    """A connection that counts what passes and ends when too much has come."""

    def __init__(self, inner: httpcore2.AsyncNetworkStream, opener: _Opener):
        self._inner, self._opener = inner, opener

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        data = await self._inner.read(max_bytes, timeout)
        self._opener.bytes_in += len(data)
        if self._opener.bytes_in > self._opener.most_in:
            raise Refused(f"the answer is longer than {self._opener.most_in} bytes")
        return data

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._opener.bytes_out += len(buffer)  # before: what a failing write has sent counts as sent
        await self._inner.write(buffer, timeout)

    async def aclose(self) -> None:
        await self._inner.aclose()

    async def start_tls(self, ssl_context: ssl.SSLContext, server_hostname: str | None = None,
                        timeout: float | None = None) -> httpcore2.AsyncNetworkStream:
        return _Stream(await self._inner.start_tls(ssl_context, server_hostname, timeout), self._opener)

    def get_extra_info(self, info: str) -> Any:
        return self._inner.get_extra_info(info)


class _Opener(httpcore2.AsyncNetworkBackend):
    """Opens the connection of one request; the switch and the addresses are checked here, where nobody gets round."""

    def __init__(self, fetcher: Fetcher, local: Place | None):
        self._fetcher, self._local = fetcher, local
        self._sockets = httpcore2.AnyIOBackend()
        self.bytes_in = self.bytes_out = 0
        self.most_in = fetcher.limits.bytes_in

    async def connect_tcp(self, host: str, port: int, timeout: float | None = None, local_address: str | None = None,
                          socket_options: Iterable[Any] | None = None) -> httpcore2.AsyncNetworkStream:
        if self._fetcher.is_offline():
            raise Refused("offline: libremoe live offline off allows requests again")
        host = host.strip("[]")
        addresses = await checked_addresses(host, port, self._fetcher.resolver, self._local)
        for i, address in enumerate(addresses):
            try:
                stream = await self._sockets.connect_tcp(address, port, timeout)
                return _Stream(stream, self)
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout):
                if i + 1 == len(addresses):
                    raise
        raise Refused(f"{host} has no address")

    async def connect_unix_socket(self, path: str, timeout: float | None = None,
                                  socket_options: Iterable[Any] | None = None) -> httpcore2.AsyncNetworkStream:
        raise Refused("sockets of the file system are not spoken to")

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


@lru_cache(1)
def _tls() -> ssl.SSLContext:
    return ssl.create_default_context()


class Fetcher:
    """Gets what a URL names, or raises Refused with a sentence. One for a process; safe for concurrent use.

    is_offline: asked before each socket. resolver: host and port to addresses; another one only in tests. tls: as well.
    """

    def __init__(self, ledger: Ledger, is_offline: Callable[[], bool] = lambda: False, resolver: Resolver = resolve,
                 limits: Limits = DEFAULT, tls: ssl.SSLContext | None = None):
        self.ledger, self.is_offline, self.resolver, self.limits = ledger, is_offline, resolver, limits
        self._tls_context = tls

    async def get(self, url: str, headers: Mapping[str, str] | None = None, why: str = "open", tag: str = "",
                  local: Place | None = None) -> Fetched:
        """The answer to GET, whatever its status below 400 and not a redirect; 304 included.

        headers: such as Authorization; sent to the first host only. why: for the ledger. local: the one place on the
        own network that may be reached, (host, port) of a source that a person added. Raises Refused.
        """
        try:
            async with asyncio.timeout(self.limits.seconds):
                return await self._follow(url, dict(headers or {}), why, tag, local)
        except TimeoutError:
            raise Refused(f"{_host_of(url)} did not answer in {self.limits.seconds:g} s") from None

    async def _follow(self, url: str, headers: dict[str, str], why: str, tag: str, local: Place | None) -> Fetched:
        first = parse(url, self.limits)
        target = first
        for _ in range(self.limits.redirects + 1):
            own = headers if (target.scheme, target.host, target.port) == (first.scheme, first.host, first.port) else {}
            got = await self._once(target, own, why, tag, local)
            location = got.headers.get("location", "")
            if got.status not in REDIRECTS or not location:
                if got.status >= 400:
                    raise Refused(f"{target.host} answered with status {got.status}")
                return got
            try:
                joined = str(target.join(location))
            except (httpx2.InvalidURL, ValueError):
                raise Refused(f"{target.host} redirects to what is no URL") from None
            following = parse(joined, self.limits)
            if target.scheme == "https" and following.scheme == "http":
                raise Refused(f"{target.host} redirects from https to http")
            target = following
        raise Refused(f"{first.host} redirects more than {self.limits.redirects} times")

    async def _once(self, target: httpx2.URL, headers: dict[str, str], why: str, tag: str,
                    local: Place | None) -> Fetched:
        host = target.host
        line = await asyncio.to_thread(self.ledger.begin, host, why, f"GET {target}", tag)
        opener = _Opener(self, local)
        status = "stopped"
        try:
            async with self._answer(target, headers, opener) as response:
                got = await self._read(target, response)
            status = str(got.status)
            return got
        except Refused as refused:
            status = f"refused: {refused}"
            raise
        except _BROKEN as error:
            status = f"failed: {type(error).__name__}"
            raise Refused(f"{host} cannot be reached: {str(error) or type(error).__name__}") from None
        finally:
            self.ledger.finish(line, status, opener.bytes_out, opener.bytes_in)

    @asynccontextmanager
    async def _answer(self, target: httpx2.URL, headers: dict[str, str],
                      opener: _Opener) -> AsyncIterator[httpcore2.Response]:
        sent: dict[bytes | str, bytes | str] = {
            "User-Agent": "libremoe (a person's reader)", "Accept": "*/*", "Accept-Encoding": "gzip",
            "Connection": "close"}
        sent.update(headers)
        times = {name: self.limits.connect_s for name in ("connect", "pool")} | {
            name: self.limits.seconds for name in ("read", "write")}
        url = httpcore2.URL(scheme=target.raw_scheme, host=target.raw_host, port=target.port, target=target.raw_path)
        async with (httpcore2.AsyncConnectionPool(
                ssl_context=self._tls_context or _tls(), network_backend=opener, max_connections=1,
                max_keepalive_connections=0, http2=False) as pool,
                pool.stream("GET", url, headers=sent, extensions={"timeout": times}) as response):
            yield response

    async def _read(self, target: httpx2.URL, response: httpcore2.Response) -> Fetched:
        pairs = response.headers
        if len(pairs) > self.limits.headers or sum(len(n) + len(v) for n, v in pairs) > self.limits.header_bytes:
            raise Refused(f"{target.host} answered with too large a head")
        headers = {n.decode("latin-1").lower(): v.decode("latin-1") for n, v in pairs}
        if response.status in REDIRECTS or response.status == 304 or response.status >= 400:
            return Fetched(str(target), response.status, headers, b"", time.time())
        kind = headers.get("content-type", "text/html").split(";")[0].strip().lower()
        if kind not in TEXTS:
            raise Refused(f"{target.host} sends {kind[:60]!r}, which is no text")
        body = b"".join([part async for part in self._inflated(target.host, headers, response)])
        return Fetched(str(target), response.status, headers, body, time.time())

    async def _inflated(self, host: str, headers: dict[str, str], response: httpcore2.Response) -> AsyncIterator[bytes]:
        """The body's parts, decompressed a little at a time, so that a bomb ends at the limit and not in memory."""
        encoding = headers.get("content-encoding", "identity").strip().lower()
        if encoding not in ("identity", "", "gzip", "x-gzip"):
            raise Refused(f"{host} compresses by {encoding[:20]!r}, which was not asked for")
        inflate = zlib.decompressobj(31) if "gzip" in encoding else None
        total = 0
        async for part in response.aiter_stream():
            data = part
            while data:
                if inflate is None:
                    piece, data = data, b""
                else:
                    try:
                        piece = inflate.decompress(data, 1 << 16)
                    except zlib.error:
                        raise Refused(f"{host} sends damaged gzip") from None
                    data = inflate.unconsumed_tail if not inflate.eof else b""
                total += len(piece)
                if total > self.limits.inflated:
                    raise Refused(f"{host} sends more than {self.limits.inflated} bytes")
                yield piece
        if inflate is not None and not inflate.eof:
            yield inflate.flush()  # less than a window
        if inflate is not None and not inflate.eof:
            raise Refused(f"{host} sends gzip that ends early")


def parse(url: str, limits: Limits = DEFAULT) -> httpx2.URL:
    """A URL that may be requested. The same value is checked and connected to, so that no second reading can differ."""
    if len(url) > limits.url:
        raise Refused(f"a URL of more than {limits.url} characters")
    if any(c.isspace() or not c.isprintable() or c in "\\" for c in url):
        raise Refused("a URL with spaces, backslashes or what cannot be seen")
    try:
        parsed = httpx2.URL(url)
        port = parsed.port
    except (httpx2.InvalidURL, ValueError) as error:
        raise Refused(f"{url[:80]!r} is no URL: {error}") from None
    if parsed.scheme not in ("http", "https"):
        raise Refused(f"{url[:80]!r} is neither http nor https")
    if parsed.userinfo:
        raise Refused("a URL with a user name or password in it")
    if not parsed.host or port == 0:
        raise Refused(f"{url[:80]!r} names no host")
    return parsed.copy_with(fragment=None)


def place_of(url: str) -> Place:
    """(host, port) as a request for this URL connects to."""
    parsed = parse(url)
    return parsed.raw_host.decode("ascii").strip("[]"), parsed.port or (443 if parsed.scheme == "https" else 80)


def _host_of(url: str) -> str:
    try:
        return httpx2.URL(url).host or url[:60]
    except (httpx2.InvalidURL, ValueError):
        return url[:60]
