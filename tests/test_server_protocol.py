"""HTTP as bytes on a connection: what is bounded, what is refused, and that nobody hears another's answer."""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Iterator

import pytest
from serving import CLIENT, GENEROUS_S, Running, served, stub, wait_until

from libremoe.server import protocol

HEALTH = b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n"
ASK = json.dumps({"prompt": "a", "max_tokens": 3}).encode()
HEAD = b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    with served(stub(tokens_per_s=2000)) as running:
        yield running


def heard(running: Running, sent: bytes) -> bytes:
    """All that the server says to these bytes until it closes, or until nothing more comes for a while.

    Raises TimeoutError where it does neither: says nothing and stays open."""
    said = b""
    with socket.create_connection(("127.0.0.1", running.port)) as connection:
        connection.settimeout(GENEROUS_S)
        with contextlib.suppress(ConnectionError):  # refused before all was sent
            connection.sendall(sent)
        try:
            while piece := connection.recv(1 << 16):
                said += piece
                connection.settimeout(0.3)
        except ConnectionError:
            pass
        except TimeoutError:
            if not said:
                raise
    return said


def lives(running: Running) -> bool:
    return CLIENT.get(f"{running.url}/health").status_code == 200


@pytest.mark.parametrize("sent", [
    b"GET /health HTTP/1.1\r\nhost: localhost\r\nx: " + b"y" * 40_000,  # does not end
    b"GET /health HTTP/1.1\r\nhost: localhost\r\nx: " + b"y" * 40_000 + b"\r\n\r\n",
    b"GET /health HTTP/1.1\r\nhost: localhost\r\n" + b"x: y\r\n" * 20_000 + b"\r\n",
    b"GET /" + b"y" * 40_000 + b" HTTP/1.1\r\nhost: localhost\r\n\r\n",
    b"GET /" + b"y" * 40_000,
])
def test_headers_have_a_limit(running: Running, sent: bytes) -> None:
    assert heard(running, sent).startswith(b"HTTP/1.1 400 ")
    assert lives(running)


@pytest.mark.parametrize("sent", [
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # TLS
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"GET / HTTP/9.9\r\nhost: localhost\r\n\r\n",
    b"GET /\r\n\r\n",
    b"GET / HTTP/1.1\r\nhost : localhost\r\n\r\n",
    b"GET / HTTP/1.1\r\nhost: localhost\r\nx: a\x00b\r\n\r\n",
    HEAD + b"content-length: 10\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    HEAD + b"content-length: 1\r\ncontent-length: 2\r\n\r\n{}",
    HEAD + b"content-length: -1\r\n\r\n",
    HEAD + b"content-length: 99999999999999999999999\r\n\r\n",
    HEAD + b"transfer-encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    HEAD + b"transfer-encoding: chunked\r\n\r\nzz\r\n",
])
def test_what_is_not_http_is_refused(running: Running, sent: bytes) -> None:
    said = heard(running, sent)
    assert said == b"" or said.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 403 ")), said[:200]  # 403: it names no host
    assert said.count(b"HTTP/1.1 ") <= 1
    assert lives(running)


def test_trailers_change_nothing_and_have_a_limit(running: Running) -> None:
    """A name that only the trailers give is no name: the guards decide by what stood in front."""
    chunk = b"%x\r\n%s\r\n" % (len(ASK), ASK)
    chunked = b"transfer-encoding: chunked\r\nconnection: close\r\n\r\n" + chunk + b"0\r\n"
    assert b" 200 " in heard(running, HEAD + chunked + b"x: y\r\n\r\n")
    nameless = HEAD.replace(b"host: localhost\r\n", b"")
    assert heard(running, nameless + chunked + b"host: localhost\r\n\r\n").startswith(b"HTTP/1.1 403 ")
    endless = heard(running, HEAD + chunked + b"x: " + b"y" * 2_000_000)
    assert b" 200 " not in endless
    assert lives(running)


def test_pipelined_requests_are_answered_in_order_and_are_few(running: Running) -> None:
    asks = HEAD + b"content-length: %d\r\n\r\n" % len(ASK) + ASK
    said = heard(running, asks + HEALTH + b"GET /nowhere HTTP/1.1\r\nhost: localhost\r\n\r\n")
    assert said.count(b"HTTP/1.1 ") == 3
    assert said.index(b"text_completion") < said.index(b'"ok"') < said.index(b"nowhere here")
    assert heard(running, HEALTH * (protocol.MAX_PIPELINED // 2)).count(b" 200 ") == protocol.MAX_PIPELINED // 2
    assert heard(running, HEALTH * 5000).count(b" 200 ") <= protocol.MAX_PIPELINED + 1
    assert lives(running)


def test_nonsense_after_a_request_does_not_land_in_its_answer(running: Running) -> None:
    said = heard(running, HEAD + b"content-length: %d\r\n\r\n" % len(ASK) + ASK + b"\x00\x01 nonsense\r\n\r\n")
    assert said.count(b"HTTP/1.1 ") <= 1
    assert b" 400 " not in said
    assert lives(running)


def test_head_and_expect(running: Running) -> None:
    said = heard(running, b"HEAD /health HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
    assert said.startswith(b"HTTP/1.1 200 ") and said.endswith(b"\r\n\r\n")
    said = heard(running, HEAD + b"content-length: %d\r\nexpect: 100-continue\r\n\r\n" % len(ASK) + ASK)
    assert said.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 ")
    websocket = b"connection: upgrade\r\nupgrade: websocket\r\n\r\n"
    assert b" 101 " not in heard(running, b"GET /health HTTP/1.1\r\nhost: localhost\r\n" + websocket)
    assert lives(running)


def test_too_many_connections_are_told_to_come_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "MAX_CONNECTIONS", 2)
    with served(stub(tokens_per_s=2000)) as running, contextlib.ExitStack() as kept:
        for _ in range(2):
            connection = kept.enter_context(socket.create_connection(("127.0.0.1", running.port)))
            connection.settimeout(GENEROUS_S)
            connection.sendall(HEALTH)
            assert connection.recv(1 << 16).startswith(b"HTTP/1.1 200 ")
        for sent in (HEALTH, HEAD + b"content-length: %d\r\n\r\n" % len(ASK) + ASK):
            head, _, body = heard(running, sent).partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 503 ")
            assert b"retry-after: 1" in head.lower() and b"connection: close" in head.lower()
            assert json.loads(body)["error"]["code"] == "too_many_connections"
        connection.sendall(HEALTH)
        assert connection.recv(1 << 16).startswith(b"HTTP/1.1 200 ")  # whoever was there before is served
        connection.close()
        wait_until(lambda: len(running.server.server_state.connections) == 1)
        assert lives(running)
