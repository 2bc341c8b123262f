"""Who may come in: keys, scopes and quotas, hosts and origins, and what the server shows to a browser."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from serving import CHAT, CLIENT, METHODS, MODEL, Running, post, served, stub, wait_until

from libremoe.errors import LibremoeError
from libremoe.server import keys, pages
from libremoe.server.app import OPEN_PATHS, ROUTES, SCOPES
from libremoe.server.serve import access_for, is_loopback


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    with served(stub(tokens_per_s=2000, fail_on=4 + ord("%"))) as running:
        yield running


def test_every_route_and_method_needs_a_key_but_health(tmp_path: Path) -> None:
    keys.add(tmp_path / "keys.json", "someone")
    with served(stub(), keys=tmp_path / "keys.json") as running:
        paths = [route.path.replace("{name:path}", MODEL) for route in ROUTES] + [
            "/nowhere",
            "/health/",
            "//health",
            "/docs",
        ]
        for path in paths:
            for method in METHODS:
                wrong = {"authorization": "Bearer lm-wrong"}, {"x-api-key": "lm-wrong"}, {"authorization": "Basic x"}
                for headers in ({}, *(wrong if method in ("GET", "POST") else ())):
                    found = CLIENT.request(method, running.url + path, headers=headers, content=b"{}")
                    if path in OPEN_PATHS:
                        asked = path == "/login" and method == "POST"  # without a key it says so once more
                        expected = 200 if method in ("GET", "HEAD") else 401 if asked else 405
                        assert found.status_code == expected, (method, path)
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
                    found = CLIENT.request(
                        "GET" if route == "/metrics" else "POST", running.url + route, headers=headers
                    )
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
    assert (
        found.headers["x-frame-options"] == "DENY" and "default-src 'none'" in found.headers["content-security-policy"]
    )
    document = CLIENT.get(f"{running.url}/openapi.json").json()
    served_paths = {route.path.replace("{name:path}", "{name}") for route in ROUTES}
    files = {route.path for route in pages.ROUTES} - {"/"}  # the page's own, no API
    assert set(document["paths"]) == served_paths - files
