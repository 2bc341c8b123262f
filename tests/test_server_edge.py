"""What is refused and how it is said, clients that leave, an engine that fails, and the end of the process: over the
stub engine."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest
from serving import CHAT, CLIENT, GENEROUS_S, METHODS, MODEL, Running, post, served, stub, wait_until

from libremoe.server.app import ROUTES


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    with served(stub(tokens_per_s=2000, fail_on=4 + ord("%"))) as running:
        yield running


def test_methods(running: Running) -> None:
    for route in ROUTES:
        path = route.path.replace("{name:path}", MODEL)
        for method in METHODS:
            if method in route.methods:
                continue
            found = CLIENT.request(method, running.url + path)
            assert found.status_code == 405, (method, path)
            assert set(found.headers["allow"].split(", ")) == route.methods


@pytest.mark.parametrize(("content", "status", "said"), [
    (b"", 400, "JSON"),
    (b"{", 400, "JSON"),
    (b"[1]", 400, "object"),
    (b'{"a": NaN}', 400, "JSON"),
    (b'{"messages": ' + b"[" * 5000 + b"]" * 5000 + b"}", 400, "recursion"),
    (b'{"messages": [{"role": "user", "content": "\\ud800"}]}', 400, "JSON"),
    (b"\xff\xfe", 400, "JSON"),
    (b'{"messages": [{"role": "user", "content": "' + b"x" * (5 << 20) + b'"}]}', 413, "longer"),
    (b'{"messages": [{"role": "user", "content": "x"}], "seed": 1e400}', 400, "seed"),
    (b'{"messages": [{"role": "user", "content": "x"}], "seed": 99999999999999999999999}', 400, "seed"),
    (b'{"messages": [{"role": "user", "content": "x"}], "temperature": 1e999}', 400, "temperature"),
    (b'{"messages": [{"role": "user", "content": "x"}], "n": true}', 400, "n: "),
    (b'{"messages": [{"role": "user", "content": "x"}], "stop": ["a", 1]}', 400, "stop"),
])
def test_bad_bodies(running: Running, content: bytes, status: int, said: str) -> None:
    for path in ("/v1/chat/completions", "/v1/messages"):
        found = post(running, path, content)
        assert found.status_code == status, found.text
        error = found.json()["error"]
        if path == "/v1/messages":
            assert found.json()["type"] == "error" and set(error) == {"type", "message"}
        else:
            assert set(error) == {"message", "type", "param", "code"}
            assert said in error["message"], error


def test_unknown_fields_are_ignored_and_other_types_refused(running: Running) -> None:
    assert post(running, "/v1/chat/completions", {**CHAT, "never_heard_of": 1, "user": "me"}).status_code == 200
    found = CLIENT.post(
        f"{running.url}/v1/chat/completions", content=json.dumps(CHAT), headers={"content-type": "text/plain"}
    )
    assert found.status_code == 415


def test_a_body_that_never_ends_is_dropped() -> None:
    with (
        served(stub(), body_timeout_s=0.3) as running,
        socket.create_connection(("127.0.0.1", running.port)) as connection,
    ):
        connection.settimeout(GENEROUS_S)
        connection.sendall(b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
                           b"content-length: 100\r\n\r\n{")
        assert b" 408 " in connection.recv(1000)


def test_long_headers_are_refused(running: Running) -> None:
    with socket.create_connection(("127.0.0.1", running.port)) as connection:
        connection.settimeout(GENEROUS_S)
        connection.sendall(b"GET /health HTTP/1.1\r\nhost: localhost\r\nx: " + b"y" * 40_000)
        assert b" 400 " in connection.recv(1000)


def test_a_request_that_cannot_fit_is_told_the_numbers(running: Running) -> None:
    found = post(running, "/v1/completions", {"model": MODEL, "prompt": "abc", "max_tokens": 5000})
    message = found.json()["error"]["message"]
    assert found.status_code == 400 and found.json()["error"]["code"] == "context_length_exceeded"
    assert all(number in message for number in ("4096", "3", "5000", "5003"))


def test_a_full_queue_refuses_with_retry_after_and_keeps_nothing() -> None:
    with served(stub(max_running=1, max_waiting=2, tokens_per_s=50)) as running:
        engine = running.service.engine
        found = post(running, "/v1/completions", {"model": MODEL, "prompt": ["a"] * 5, "max_tokens": 1000})
        assert found.status_code == 503 and int(found.headers["retry-after"]) >= 1
        wait_until(lambda: not engine.running and not engine.waiting)


def test_a_request_that_waits_too_long_is_refused() -> None:
    endless = {"prompt": "a", "max_tokens": 1000, "stream": True}
    with (
        served(stub(max_running=1, tokens_per_s=20), queue_timeout_s=0.2) as running,
        httpx2.stream("POST", f"{running.url}/v1/completions", json=endless) as first,
    ):
        lines = first.iter_lines()  # kept: an iterator that is dropped closes the connection
        next(lines)
        late = post(running, "/v1/completions", {"prompt": "b"})
        assert late.status_code == 503 and late.json()["error"]["code"] == "queue_timeout"
        assert "retry-after" in late.headers
        streamed = post(running, "/v1/messages", {**CHAT, "stream": True})
        assert "event: error" in streamed.text and "overloaded_error" in streamed.text


# Clients that leave, engines that fail


def test_who_leaves_frees_the_place(running: Running) -> None:
    engine = running.service.engine
    for path, body in [
        ("/v1/completions", {"prompt": "a", "max_tokens": 4000, "stream": True, "n": 3}),
        ("/v1/chat/completions", {**CHAT, "max_tokens": 3000, "stream": True}),
        ("/v1/messages", {**CHAT, "max_tokens": 3000, "stream": True}),
    ]:
        with httpx2.stream("POST", running.url + path, json=body, timeout=GENEROUS_S) as response:
            pieces = response.iter_bytes()  # kept: an iterator that is dropped closes the connection
            next(pieces)
            assert engine.running or engine.waiting
        assert wait_until(lambda: not engine.running and not engine.waiting) < GENEROUS_S
    with pytest.raises(httpx2.TimeoutException):
        httpx2.post(f"{running.url}/v1/completions", json={"prompt": "a", "max_tokens": 4000}, timeout=0.3)
    wait_until(lambda: not engine.running)


def test_who_leaves_during_a_long_prefill_frees_the_place() -> None:
    with served(stub(prefill_s=60.0), ping_s=0.1) as running:
        engine = running.service.engine
        for body in ({"prompt": "a", "stream": True}, {"prompt": "a"}):
            with socket.create_connection(("127.0.0.1", running.port)) as connection:
                content = json.dumps(body).encode()
                connection.sendall(
                    b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
                    b"content-length: %d\r\n\r\n" % len(content) + content
                )
                wait_until(lambda: engine.running)
                if "stream" in body:
                    said = b""
                    while said.count(b": ping\n\n") < 2:  # it says that it lives
                        said += connection.recv(1000)
            wait_until(lambda: not engine.running)


def test_one_failure_ends_one_request(running: Running) -> None:
    found = post(running, "/v1/completions", {"prompt": "fail %", "max_tokens": 50})
    assert found.status_code == 500 and "told to fail" in found.json()["error"]["message"]
    streamed = post(
        running, "/v1/chat/completions", {**CHAT, "messages": [{"role": "user", "content": "%"}], "stream": True}
    )
    events = [line for line in streamed.text.splitlines() if line.startswith("data: ")]
    assert streamed.status_code == 200 and "told to fail" in events[-1] and "[DONE]" not in streamed.text
    for path in ("/v1/responses", "/v1/messages"):
        body = {**CHAT, "messages": [{"role": "user", "content": "%"}], "input": "%", "stream": True}
        assert "event: error" in post(running, path, body).text
    assert post(running, "/v1/chat/completions", CHAT).status_code == 200
    assert not running.service.engine.running


def test_metrics(running: Running) -> None:
    post(running, "/v1/chat/completions", CHAT)
    text = CLIENT.get(f"{running.url}/metrics").text
    for name in ("waiting", "running", "kv_blocks", "prefix_hit_tokens_total", "time_to_first_token_seconds_count",
                 "time_between_tokens_seconds_bucket", "requests_total", "finished_total"):
        assert f"libremoe_{name}" in text, name
    assert 'route="/v1/chat/completions",status="200"' in text


def test_long_texts_are_tokenised_beside_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """While a long text is tokenised, others are served."""
    with served(stub(context_len=1 << 22), context_len=1 << 22) as running:
        began, go_on, threads = threading.Event(), threading.Event(), set()
        encode = running.service.tokenizer.encode_untrusted

        def slow(text: str) -> list[int]:
            if len(text) > 10_000:
                threads.add(threading.current_thread())
                began.set()
                go_on.wait(GENEROUS_S)
            return encode(text)

        monkeypatch.setattr(running.service.tokenizer, "encode_untrusted", slow)
        for path, body in [
            ("/tokenize", {"text": "word " * 10_000}),
            ("/v1/completions", {"prompt": "word " * 10_000, "max_tokens": 1}),
            ("/v1/chat/completions", {"messages": [{"role": "user", "content": "word " * 10_000}], "max_tokens": 1}),
        ]:
            began.clear()
            go_on.clear()
            with ThreadPoolExecutor(1) as pool:
                asked = pool.submit(post, running, path, body)
                assert began.wait(GENEROUS_S)
                assert CLIENT.get(f"{running.url}/health").status_code == 200
                go_on.set()
                assert asked.result().status_code == 200


# The process


def _serve(folder: Path, *more: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "libremoe.cli", "serve", str(folder), "--port", "0", *more]
    environment = {**os.environ, "LIBREMOE_KEYS": str(folder.parent / "keys.json")}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def test_the_command_serves_says_so_and_drains(tmp_path: Path) -> None:
    from libremoe.tiny import make_tiny

    make_tiny(tmp_path / "tiny", as_="native")
    refused = _serve(tmp_path / "tiny", "--host", "0.0.0.0")
    assert refused.wait(120) == 2 and "libremoe keys add" in refused.communicate()[1]
    process = _serve(tmp_path / "tiny")
    banner = [process.stdout.readline() for _ in range(5)]
    assert "'tiny'" in banner[0] and "transcript" in banner[0] and "only programs on this machine" in banner[4]
    url = banner[1].split("base URL ")[1].split("/v1")[0]
    with httpx2.stream("POST", f"{url}/v1/completions", json={"prompt": "a", "max_tokens": 400, "stream": True},
                       timeout=60) as response:
        lines = response.iter_lines()
        next(lines)
        process.send_signal(signal.SIGTERM)
        wait_until(lambda: CLIENT.get(f"{url}/health").status_code == 503)
        late = CLIENT.post(f"{url}/v1/completions", json={"prompt": "b"})
        assert late.status_code == 503 and "retry-after" in late.headers
        assert list(lines)[-2] == "data: [DONE]"  # what ran is finished
    assert process.wait(30) == 0


def test_a_second_signal_ends_at_once(tmp_path: Path) -> None:
    from libremoe.tiny import make_tiny

    make_tiny(tmp_path / "tiny", as_="native")
    process = _serve(tmp_path / "tiny")
    banner = [process.stdout.readline() for _ in range(5)]
    url = banner[1].split("base URL ")[1].split("/v1")[0]
    body = {"prompt": ["a"] * 100, "max_tokens": 500, "stream": True, "ignore_eos": True}
    with httpx2.stream("POST", f"{url}/v1/completions", json=body, timeout=60) as response:
        lines = response.iter_lines()
        next(lines)
        process.send_signal(signal.SIGTERM)
        wait_until(lambda: CLIENT.get(f"{url}/health").status_code == 503)
        process.send_signal(signal.SIGTERM)
        assert process.wait(GENEROUS_S) == 0
