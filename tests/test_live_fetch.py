"""Where requests go, and what may come back: nothing that is not public, nothing unbounded, nothing unseen.

For each protection a test takes it away and sees that the attack then works.
"""

import asyncio
import contextlib
import gzip
import json
import ssl
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpcore2
import pytest
import trustme
from live_web import PUBLIC, PUBLIC_V6, Asked, Web, answer, redirect

from libremoe.errors import LibremoeError
from libremoe.live import addresses, fetch
from libremoe.live.addresses import Refused, is_local, is_public
from libremoe.live.fetch import DEFAULT, Fetcher
from libremoe.live.ledger import Ledger

_V4 = """
127.0.0.1 127.255.255.254 10.0.0.1 10.255.1.2 172.16.0.1 172.31.255.1 192.168.0.1 192.168.255.254 169.254.169.254
169.254.0.1 100.64.0.1 100.127.255.254 0.0.0.0 0.1.2.3 192.0.0.8 192.0.2.1 198.18.0.1 198.19.255.1 198.51.100.7
203.0.113.9 224.0.0.1 239.255.255.255 240.0.0.1 255.255.255.255 192.88.99.1 192.31.196.1 192.52.193.1 192.175.48.1"""
_V6 = """
::1 :: ::127.0.0.1 ::ffff:127.0.0.1 ::ffff:7f00:1 ::ffff:0:7f00:1 64:ff9b::7f00:1 64:ff9b::10.0.0.1 64:ff9b:1::1
2002:7f00:1:: 2002:a00:1::1 2001:0:7f00:1::1 2001::1 2001:db8::1 2001:10::1 fc00::1 fd12:3456::1 fe80::1 fec0::1
ff02::1 ff05::2 100::1 3fff::1 5f00::1 4000::1 fe80::5efe:7f00:1 ::169.254.169.254 ::ffff:169.254.169.254
2620:4f:8000::1 2001:2::1"""
_ODD = """127.1 127.0.1 2130706433 0x7f000001 0177.0.0.1 0x7f.0.0.1 017700000001 10.1 3232235521 0xA9FEA9FE 2852039166
127.0.0.1. 0 0x0 1"""
V4, V6, ODD = _V4.split(), _V6.split(), _ODD.split()


def attack_urls() -> list[str]:
    """300 URLs that lead to what is not public, by address, by odd forms of it, or by name."""
    hosts = [*V4, *(f"[{a}]" for a in V6), *ODD]
    paths = ["/", "/latest/meta-data/", "/admin?x=1", "/a@b"]
    urls = [f"http://{h}{p}" for p in paths for h in hosts]
    urls += [f"http://{h}:8080/" for h in hosts]
    return urls[:300]


class Run:
    """One set of requests. bad: connections to anything but the web's public addresses."""

    def __init__(self) -> None:
        self.bad: list[tuple[str, int]] = []
        self.got = self.refused = 0


async def attack(kind: str, urls: list[str], kind_of_web: type[Web] = Web) -> Run:
    run = Run()
    async with kind_of_web() as web:
        fetcher = Fetcher(Ledger(":memory:"), resolver=web.resolve, limits=replace(DEFAULT, seconds=5.0))
        private = [*V4, *V6]
        for i, url in enumerate(urls):
            start = url
            if kind == "redirect":
                start = f"http://news{i}.example/go"
                web.pages[start] = redirect(url, (301, 302, 303, 307, 308)[i % 5])
            elif kind == "rebinding":  # public when it is asked first, private ever after
                start = f"http://again{i}.example/"
                web.names[f"again{i}.example"] = [[PUBLIC], [private[i % len(private)]]]
                web.pages[start] = answer("hello")
            elif kind == "mixed":
                start = f"http://both{i}.example/"
                mix = [PUBLIC, private[i % len(private)]]
                web.names[f"both{i}.example"] = [mix if i % 2 else mix[::-1]]
            elif kind == "name":
                start = f"http://inside{i}.example/"
                web.names[f"inside{i}.example"] = [[private[i % len(private)]]]
            try:
                await fetcher.get(start)
                run.got += 1
            except Refused:
                run.refused += 1
        run.bad = [c for c in web.connected if c[0] not in (PUBLIC, PUBLIC_V6)]
    return run


@pytest.mark.parametrize("kind", ["direct", "redirect", "rebinding", "mixed", "name"])
def test_nothing_that_is_not_public_is_connected_to(kind: str) -> None:
    urls = attack_urls()
    assert len(urls) == len(set(urls)) == 300
    run = asyncio.run(attack(kind, urls))
    assert run.bad == []
    if kind == "rebinding":  # the checked address is the one that is used
        assert run.got == 300
    else:
        assert run.refused == 300


def _in_a_namespace() -> list[str] | None:
    """How to run something in a network of its own, as this user may; None where the system does not allow it."""
    for flags in (["--map-root-user", "--net"], ["--net"]):
        with contextlib.suppress(OSError):
            if subprocess.run(["unshare", *flags, "ip", "link"], capture_output=True).returncode == 0:
                return ["unshare", *flags]
    return None


def test_no_packet_goes_to_what_is_not_public() -> None:
    """The kernel's own count, with nothing patched: in a network where every address would answer."""
    inside = _in_a_namespace()
    if inside is None:
        pytest.skip("no network namespaces here (they need unshare, ip, and a kernel that lets this user make one)")
    script = Path(__file__).with_name("live_namespace.py")
    done = subprocess.run([*inside, sys.executable, str(script)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    reached, _, packets = found.pop("control")
    assert reached == 3 and packets >= 3  # a client that checks nothing gets through, and is seen
    assert found == {"rebinding": [300, 0, 0]} | {k: [0, 300, 0] for k in ("direct", "redirect", "mixed", "name")}


def _any_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(addresses, "is_public", lambda _: True)
    monkeypatch.setattr(addresses, "check_host", lambda *_: None)


def _python_is_global(monkeypatch: pytest.MonkeyPatch) -> None:
    import ipaddress

    monkeypatch.setattr(addresses, "is_public", lambda a: ipaddress.ip_address(a).is_global)


def _first_address_only(monkeypatch: pytest.MonkeyPatch) -> None:
    async def checked(host: str, port: int, resolver: Any, local: Any = None) -> list[str]:
        found = await resolver(host, port)
        if not is_public(found[0]):
            raise Refused("no")
        return list(reversed(found))

    monkeypatch.setattr(fetch, "checked_addresses", checked)


def _resolved_again(monkeypatch: pytest.MonkeyPatch) -> None:
    real = addresses.checked_addresses

    async def checked(host: str, port: int, resolver: Any, local: Any = None) -> list[str]:
        await real(host, port, resolver, local)
        return list(await resolver(host, port))  # as a client that is given the name does

    monkeypatch.setattr(fetch, "checked_addresses", checked)


def _redirects_unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    real = addresses.checked_addresses

    async def checked(host: str, port: int, resolver: Any, local: Any = None) -> list[str]:
        if host.endswith(".example"):
            return await real(host, port, resolver, local)
        return list(await resolver(host, port))

    monkeypatch.setattr(fetch, "checked_addresses", checked)


@pytest.mark.parametrize("kind, without", [
    ("direct", _any_address), ("direct", _python_is_global), ("name", _any_address), ("mixed", _first_address_only),
    ("rebinding", _resolved_again), ("redirect", _redirects_unchecked)])
def test_each_protection_matters(kind: str, without: Callable[[pytest.MonkeyPatch], None],
                                 monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch)
    assert asyncio.run(attack(kind, attack_urls()[:72])).bad


def test_the_tables() -> None:
    assert not [a for a in [*V4, *V6] if is_public(a)]
    assert all(is_public(a) for a in (PUBLIC, PUBLIC_V6, "1.1.1.1", "8.8.8.8", "2a00:1450:4007::1", "172.32.0.1",
                                      "100.128.0.1", "192.0.1.1", "2001:4860:4860::8888"))
    assert not any(is_public(a) for a in ("", "example.org", "127.1", "fe80::1%eth0", "2606::1%eth0", "1.1.1.1/8"))
    assert [a for a in [*V4, *V6] if is_local(a)] and not is_local("169.254.169.254") and not is_local("fe80::1")


def run_web(body: Callable[[Web, Fetcher], Awaitable[None]], **limits: float) -> None:
    async def main() -> None:
        async with Web() as web:
            changed = replace(DEFAULT, **limits)  # type: ignore[arg-type]
            fetcher = Fetcher(Ledger(":memory:"), resolver=web.resolve, limits=changed)
            await body(web, fetcher)

    asyncio.run(main())


@pytest.mark.parametrize("url, why", [
    ("ftp://a.example/", "neither http"), ("file:///etc/passwd", "neither http"), ("javascript:a(1)", "neither http"),
    ("http://u:p@a.example/", "user name"), ("http://a.example:25/", "port 25"), ("http://a.example:0/", "no host"),
    ("http:///x", "no host"), ("http://a b.example/", "spaces"), ("http://a.example\\@b.example/", "backslash"),
    ("http://a.example/\u200b", "cannot be seen"), ("http://" + "a" * 5000, "4096"),
    ("http://a%2eexample/", "no host name"),
    ("http://a.example/\r\nX: y", "spaces"), ("http://[::1", "no URL"), ("", "neither http"),
])
def test_urls_that_are_refused(url: str, why: str) -> None:
    async def body(web: Web, fetcher: Fetcher) -> None:
        with pytest.raises(Refused, match=why):
            await fetcher.get(url)
        assert web.connected == []

    run_web(body)


def test_a_place_on_the_own_network_only_where_it_was_added() -> None:
    async def body(web: Web, fetcher: Fetcher) -> None:
        home = f"http://127.0.0.1:{web.port}"
        web.pages[f"{home}/search"] = answer("{}", "application/json")
        web.pages["http://news.example/"] = redirect(f"{home}/search")
        web.pages[f"{home}/away"] = redirect("http://10.0.0.1/")
        local = ("127.0.0.1", web.port)
        assert (await fetcher.get(f"{home}/search?q=a", local=local)).body == b"{}"
        for url, place in ((f"{home}/search", None), (f"{home}/search", ("127.0.0.1", web.port + 1)),
                           (f"http://localhost:{web.port}/search", local), ("http://127.0.0.1:8080/", local),
                           ("http://news.example/", None), (f"{home}/away", local)):
            before = len(web.asked)
            with pytest.raises(Refused):
                await fetcher.get(url, local=place)
            assert all(a.target != "/search" for a in web.asked[before:])

    run_web(body)


def test_offline_opens_no_socket() -> None:
    seen: list[Any] = []
    watching = [True]

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if watching[0] and event in ("socket.connect", "socket.sendto", "socket.getaddrinfo"):
            seen.append((event, args[1:]))

    sys.addaudithook(hook)

    async def main(offline: bool) -> list[Any]:
        switch = [offline]
        async with Web() as web:
            web.pages["http://news.example/"] = answer("hello")
            web.pages[f"http://127.0.0.1:{web.port}/"] = answer("hello")
            fetcher = Fetcher(Ledger(":memory:"), lambda: switch[0], resolver=web.resolve)
            seen.clear()
            home = f"http://127.0.0.1:{web.port}/"
            for url, local in (("http://news.example/", None), (home, ("127.0.0.1", web.port))):
                if offline:
                    with pytest.raises(Refused, match="offline"):
                        await fetcher.get(url, local=local)
                else:
                    await fetcher.get(url, local=local)
            if offline:
                assert (web.resolved, web.connected) == ([], [])
                assert [e.status.split(":")[0] for e in fetcher.ledger.entries()] == ["refused", "refused"]
            return list(seen)

    try:
        assert asyncio.run(main(offline=True)) == []
        assert len(asyncio.run(main(offline=False))) == 2  # the hook sees what is opened
    finally:
        watching[0] = False


def test_the_ledger_is_written_before_a_byte_leaves() -> None:
    async def body(web: Web, fetcher: Fetcher) -> None:
        lines: list[str] = []

        async def page(asked: Asked, writer: asyncio.StreamWriter) -> None:
            lines.extend(e.status for e in fetcher.ledger.entries())
            writer.write(answer("hello"))
            await writer.drain()

        web.pages["http://news.example/a"] = page
        web.pages["http://old.example/"] = redirect("http://news.example/a?q=secret%20words")
        await fetcher.get("http://old.example/", why="search: news", tag="conversation 1")
        assert lines == ["sending", "302"]
        new, old = fetcher.ledger.entries()
        assert (new.host, new.status, new.why, new.tag) == ("news.example", "200", "search: news", "conversation 1")
        assert new.sent == "GET http://news.example/a?q=secret%20words" and old.sent == "GET http://old.example/"
        assert new.bytes_out > 50 and new.bytes_in > 50
        fetcher.ledger.forget("conversation 1")
        assert all("secret" not in str(e.as_dict()) for e in fetcher.ledger.entries())
        assert [e.bytes_out > 0 for e in fetcher.ledger.entries()] == [True, True]

    run_web(body)


def test_a_redirect_carries_no_key_elsewhere() -> None:
    async def body(web: Web, fetcher: Fetcher) -> None:
        web.pages["http://api.example/"] = redirect("http://other.example/")
        web.pages["http://other.example/"] = answer("hello")
        await fetcher.get("http://api.example/", {"Authorization": "Bearer secret"})
        assert [a.headers.get("authorization") for a in web.asked] == ["Bearer secret", None]
        assert [a.headers["host"] for a in web.asked] == ["api.example", "other.example"]

    run_web(body)


BOMB = gzip.compress(b"0" * (64 << 20))


async def _endless(asked: Asked, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n")
    while True:
        writer.write(b"x" * 65536)
        await writer.drain()


async def _slow(asked: Asked, writer: asyncio.StreamWriter) -> None:
    for byte in b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 1000\r\n\r\n" + b"x" * 1000:
        writer.write(bytes([byte]))
        await writer.drain()
        await asyncio.sleep(0.05)


async def _endless_head(asked: Asked, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\n")
    while True:
        writer.write(b"X: " + b"y" * 1000 + b"\r\n")
        await writer.drain()


async def _silent(asked: Asked, writer: asyncio.StreamWriter) -> None:
    await asyncio.sleep(10)


async def _loop(asked: Asked, writer: asyncio.StreamWriter) -> None:
    writer.write(redirect(f"/?n={len(asked.target)}"))
    await writer.drain()


@pytest.mark.parametrize("page, why, protection", [
    (answer(BOMB, Content_Encoding="gzip"), "more than 100000", {"inflated": 100_000}),
    (answer(gzip.compress(BOMB), Content_Encoding="gzip, gzip"), "was not asked for", {}),
    (answer(b"x" * 30, Content_Encoding="br"), "was not asked for", {}),
    (answer(BOMB[:5000], Content_Encoding="gzip"), "more than|ends early", {"inflated": 100_000}),
    (answer(b"junk", Content_Encoding="gzip"), "damaged", {}),
    (_endless, "longer than|more than", {"bytes_in": 200_000}), (_slow, "did not answer in", {"seconds": 1.0}),
    (_silent, "did not answer in", {"seconds": 0.5}), (_endless_head, "cannot be reached|longer than", {}),
    (answer("x", **{f"H{i}": "y" for i in range(200)}), "too large a head", {}),
    (_loop, "more than 5 times", {}), (answer("x", "image/png"), "no text", {}),
    (answer("x", status=500), "status 500", {}), (redirect("ftp://a/"), "neither", {}),
    (redirect("https://news.example/"), "did not answer in|cannot be reached", {"seconds": 1.0}),
    (b"junk\r\n\r\n", "cannot be reached", {}), (b"", "cannot be reached", {}),
    (b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 1000\r\n\r\nshort", "cannot be reached", {}),
])
def test_answers_that_are_refused(page: Any, why: str, protection: dict[str, float]) -> None:
    async def body(web: Web, fetcher: Fetcher) -> None:
        web.pages["http://news.example/"] = page
        started = time.monotonic()
        with pytest.raises(Refused, match=why):
            await fetcher.get("http://news.example/")
        assert all(e.status != "sending" for e in fetcher.ledger.entries())
        assert time.monotonic() - started < 60

    run_web(body, **protection)


def test_limits_matter() -> None:
    async def body(web: Web, fetcher: Fetcher) -> None:
        web.pages["http://news.example/"] = answer(BOMB, Content_Encoding="gzip")
        assert len((await fetcher.get("http://news.example/")).body) == 64 << 20

    run_web(body, inflated=1 << 30)


def test_good_answers_arrive_whole() -> None:
    text = bytes(range(32, 127)) * 5000

    async def chunked(asked: Asked, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nTransfer-Encoding: chunked\r\n\r\n")
        for i in range(0, len(text), 7777):
            part = text[i: i + 7777]
            writer.write(f"{len(part):x}\r\n".encode() + part + b"\r\n")
        writer.write(b"0\r\n\r\n")
        await writer.drain()

    async def body(web: Web, fetcher: Fetcher) -> None:
        web.pages["http://a.example/"] = answer(gzip.compress(text), Content_Encoding="gzip")
        web.pages["http://b.example/"] = chunked
        web.pages["http://c.example/"] = answer(text)
        web.names["c.example"] = [[PUBLIC_V6, PUBLIC]]
        for host in "abc":
            assert (await fetcher.get(f"http://{host}.example/")).body == text

    run_web(body)


def test_no_other_connection_is_ever_opened() -> None:
    """The package's only use of sockets is the one in fetch.py."""
    from pathlib import Path

    for path in (Path(fetch.__file__).parent).glob("*.py"):
        source = path.read_text()
        opens = any(word in source for word in (
            "create_connection", "socket.socket", "urlopen", "Client(", "open_connection", "AnyIOBackend"))
        assert opens == (path.name == "fetch.py"), path
    assert httpcore2.AnyIOBackend.connect_tcp


def _certificate(kind: str, authority: trustme.CA) -> trustme.LeafCert:
    now = datetime.now(UTC)
    if kind == "of another authority":
        return trustme.CA().issue_cert("news.example")
    if kind == "expired":
        return authority.issue_cert("news.example", not_before=now - timedelta(9), not_after=now - timedelta(1))
    return authority.issue_cert("other.example" if kind == "of another name" else "news.example")


@pytest.mark.parametrize("kind", ["good", "of another name", "expired", "of another authority", "of nobody we know"])
def test_certificates_are_checked(kind: str) -> None:
    """https to a server whose certificate is not good sends no request."""
    authority = trustme.CA()
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    _certificate(kind, authority).configure_cert(server)
    authority.configure_trust(client)

    async def go() -> tuple[bytes, list[Asked]]:
        async with Web(server) as web:
            web.pages["http://news.example/"] = answer("<p>hello</p>")
            trusted = None if kind == "of nobody we know" else client
            fetcher = Fetcher(Ledger(":memory:"), resolver=web.resolve, tls=trusted)
            try:
                return (await fetcher.get("https://news.example/")).body, web.asked
            except LibremoeError as error:
                assert "certificate" in str(error).lower(), error
                return b"", web.asked

    body, asked = asyncio.run(go())
    assert (body, len(asked)) == ((b"<p>hello</p>", 1) if kind == "good" else (b"", 0))
