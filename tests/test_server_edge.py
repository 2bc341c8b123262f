"""Who may come in, what is refused and how it is said, clients that leave, and an engine that fails: over the stub engine."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import pytest
from serving import MODEL, Running, served, stub

from libremoe.errors import LibremoeError
from libremoe.server import keys
from libremoe.server.app import ROUTES, SCOPES
from libremoe.server.serve import access_for, is_loopback

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND")
CHAT = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4}
FREED_S = 1.0  # a client that leaves frees its place within this
GENEROUS_S = 20.0  # nothing here takes so long, however busy the machine


CLIENT = httpx2.Client(timeout=GENEROUS_S)  # making one takes longer than most requests


def post(running: Running, path: str, body: Any, **headers: str) -> httpx2.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return CLIENT.post(running.url + path, content=content,
                       headers={"content-type": "application/json"} | headers)


def wait_until(true: Any, timeout_s: float = GENEROUS_S) -> float:
    """Seconds until true() holds."""
    began = time.monotonic()
    while not true():
        if time.monotonic() - began > timeout_s:
            raise TimeoutError("it never came true")
        time.sleep(0.005)
    return time.monotonic() - began


@pytest.fixture(scope="module")
def running():  # type: ignore[no-untyped-def]
    with served(stub(tokens_per_s=2000, fail_on=4 + ord("%"))) as running:
        yield running


# Who may come in


def test_every_route_and_method_needs_a_key_but_health(tmp_path: Path) -> None:
    keys.add(tmp_path / "keys.json", "someone")
    with served(stub(), keys=tmp_path / "keys.json") as running:
        paths = [route.path.replace("{name:path}", MODEL) for route in ROUTES] + ["/nowhere", "/health/", "//health", "/docs"]
        for path in paths:
            for method in METHODS:
                wrong = {"authorization": "Bearer lm-wrong"}, {"x-api-key": "lm-wrong"}, {"authorization": "Basic x"}
                for headers in ({}, *(wrong if method in ("GET", "POST") else ())):
                    found = CLIENT.request(method, running.url + path, headers=headers, content=b"{}")
                    if path == "/health":
                        assert found.status_code == (200 if method in ("GET", "HEAD") else 405)
                    else:
                        assert found.status_code == 401, (method, path, headers)
                        assert "www-authenticate" in found.headers


def test_a_key_opens_its_scopes_only(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    secrets = {scope: keys.add(path, scope, (scope,)) for scope in keys.SCOPES}
    with served(stub(), keys=path) as running:
        for route, needed in SCOPES.items():
            for scope, secret in secrets.items():
                for headers in ({"authorization": f"Bearer {secret}"}, {"x-api-key": secret}):
                    found = CLIENT.request("GET" if route == "/metrics" else "POST", running.url + route, headers=headers)
                    assert (found.status_code == 403) == (scope != needed), (route, scope)
        assert CLIENT.get(f"{running.url}/v1/models", headers={"x-api-key": secrets["embed"]}).status_code == 200


def test_a_removed_key_is_refused_and_the_server_never_opens(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    secret = keys.add(path, "someone")
    with served(stub(), keys=path) as running:
        headers = {"authorization": f"Bearer {secret}"}
        assert CLIENT.get(f"{running.url}/v1/models", headers=headers).status_code == 200
        keys.remove(path, "someone")
        wait_until(lambda: CLIENT.get(f"{running.url}/v1/models", headers=headers).status_code == 401)
        assert CLIENT.get(f"{running.url}/v1/models").status_code == 401
        secret = keys.add(path, "another")
        headers = {"authorization": f"Bearer {secret}"}
        wait_until(lambda: CLIENT.get(f"{running.url}/v1/models", headers=headers).status_code == 200)


def test_quotas(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    few = keys.add(path, "few", rpm=2)
    small = keys.add(path, "small", tpm=3000)
    with served(stub(tokens_per_s=2000), keys=path) as running:
        statuses = [post(running, "/v1/chat/completions", CHAT, authorization=f"Bearer {few}") for _ in range(3)]
        assert [found.status_code for found in statuses] == [200, 200, 429]
        assert 1 <= int(statuses[-1].headers["retry-after"]) <= 30
        prompt = {"model": MODEL, "prompt": "x" * 100, "max_tokens": 2000}
        stream = {**prompt, "stream": True}
        with httpx2.stream("POST", f"{running.url}/v1/completions", json=stream, headers={"x-api-key": small}) as first:
            assert first.status_code == 200
            second = post(running, "/v1/completions", prompt, **{"x-api-key": small})
            assert second.status_code == 429 and int(second.headers["retry-after"]) >= 1
        # what the first did not use comes back when it leaves
        again = {**prompt, "max_tokens": 100}
        wait_until(lambda: post(running, "/v1/completions", again, **{"x-api-key": small}).status_code == 200)
        never = post(running, "/v1/completions", {**prompt, "max_tokens": 3000}, **{"x-api-key": small})
        assert never.status_code == 400 and "3100" in never.json()["error"]["message"]


def test_keys_are_stored_as_hashes_for_the_owner_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "folder" / "keys.json"
    secret = keys.add(path, "someone", rpm=5)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert secret not in path.read_text() and secret.removeprefix(keys.PREFIX) not in path.read_text()
    with pytest.raises(LibremoeError, match="already"):
        keys.add(path, "someone")
    for bad in ("", "a b", "x" * 65, "../x\n"):
        with pytest.raises(LibremoeError):
            keys.add(path, bad)
    path.chmod(0o644)
    with pytest.raises(LibremoeError, match="chmod 600"):
        keys.load_keys(path)
    path.chmod(0o600)
    path.write_text('{"keys": [{"name": "x", "sha256": "short", "scopes": []}]}')
    with pytest.raises(LibremoeError, match="SHA-256"):
        keys.load_keys(path)


def test_a_server_open_to_others_needs_a_key(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    for host in ("0.0.0.0", "::", "192.168.1.2", "example.org", "127.1", "2130706433", "", "::ffff:127.0.0.1.evil"):
        with pytest.raises(LibremoeError, match="keys add"):
            access_for(host, path)
    for host in ("127.0.0.1", "::1", "localhost", "127.8.9.1"):
        assert is_loopback(host) and not access_for(host, path).required
    keys.add(path, "someone")
    assert access_for("0.0.0.0", path).required and access_for("127.0.0.1", path).required


@pytest.mark.parametrize(("headers", "status"), [
    ({"host": "evil.example"}, 403),
    ({"host": "evil.example:80"}, 403),
    ({"host": "127.0.0.1.evil.example"}, 403),
    ({"host": "localhost@evil.example"}, 403),
    ({"host": "[::1"}, 403),
    ({"host": "localhost"}, 200),
    ({"host": "LOCALHOST:1"}, 200),
    ({"host": "[::1]:8000"}, 200),
    ({"origin": "https://evil.example"}, 403),
    ({"origin": "null"}, 403),
    ({"origin": "http://localhost:1"}, 403),
    ({"sec-fetch-site": "cross-site"}, 403),
    ({"sec-fetch-site": "same-origin"}, 200),
])
def test_hosts_and_origins(running: Running, headers: dict[str, str], status: int) -> None:
    for method in ("GET", "POST", "OPTIONS"):
        found = CLIENT.request(method, f"{running.url}/v1/models", headers=headers)
        assert (found.status_code == 403) == (status == 403), method
        assert "access-control-allow-origin" not in found.headers


def test_an_allowed_origin(running: Running) -> None:
    with served(stub(), origins=("https://mine.example",)) as mine:
        asks = {"origin": "https://mine.example", "access-control-request-method": "POST"}
        assert CLIENT.options(f"{mine.url}/v1/models", headers=asks).status_code == 204
        found = CLIENT.get(f"{mine.url}/v1/models", headers={"origin": "https://mine.example"})
        assert found.headers["access-control-allow-origin"] == "https://mine.example"
        assert CLIENT.get(f"{mine.url}/v1/models", headers={"origin": "https://mine.example.evil"}).status_code == 403


def test_own_page_is_local_and_framed_nowhere(running: Running) -> None:
    found = CLIENT.get(running.url)
    assert found.status_code == 200 and "/v1/chat/completions" in found.text
    assert "<script" not in found.text and "http://" not in found.text and "https://" not in found.text
    assert found.headers["x-frame-options"] == "DENY" and "default-src 'none'" in found.headers["content-security-policy"]
    document = CLIENT.get(f"{running.url}/openapi.json").json()
    served_paths = {route.path.replace("{name:path}", "{name}") for route in ROUTES}
    assert set(document["paths"]) == served_paths


# What is refused, and how it is said


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
    found = CLIENT.post(f"{running.url}/v1/chat/completions", content=json.dumps(CHAT), headers={"content-type": "text/plain"})
    assert found.status_code == 415


def test_a_body_that_never_ends_is_dropped() -> None:
    with served(stub(), body_timeout_s=0.3) as running, socket.create_connection(("127.0.0.1", running.port)) as connection:
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
    with served(stub(max_running=1, tokens_per_s=20), queue_timeout_s=0.2) as running:
        with httpx2.stream("POST", f"{running.url}/v1/completions",
                           json={"prompt": "a", "max_tokens": 1000, "stream": True}) as first:
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
                connection.sendall(b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
                                   b"content-length: %d\r\n\r\n" % len(content) + content)
                wait_until(lambda: engine.running)
                if "stream" in body:
                    said = b""
                    while said.count(b": ping\n\n") < 2:  # it says that it lives
                        said += connection.recv(1000)
            wait_until(lambda: not engine.running)


def test_one_failure_ends_one_request(running: Running) -> None:
    found = post(running, "/v1/completions", {"prompt": "fail %", "max_tokens": 50})
    assert found.status_code == 500 and "told to fail" in found.json()["error"]["message"]
    streamed = post(running, "/v1/chat/completions", {**CHAT, "messages": [{"role": "user", "content": "%"}], "stream": True})
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
