"""kill -9 of the server while conversations are written, and secrets that must not stay: what was acknowledged is
there, what was erased is nowhere, and no log knows either."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import random
import re
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from postgres_server import Server, postgres  # noqa: F401  the fixture
from serving import CLIENT, Running, chatting, post, served, stub

from libremoe.chat.store import Store, open_store

N_KILLS = int(os.environ.get("LIBREMOE_CHAT_KILLS", "1000"))
N_SECRETS = int(os.environ.get("LIBREMOE_CHAT_SECRETS", "500"))
N_TALKERS = 4


class Killee:
    """The process that starts servers."""

    def __init__(self) -> None:
        self.process = subprocess.Popen([sys.executable, str(Path(__file__).with_name("chat_killee.py"))],
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def start(self, where: str) -> tuple[int, str]:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(where + "\n")
        self.process.stdin.flush()
        found = json.loads(self.process.stdout.readline())
        return found["pid"], found["url"]


@contextlib.contextmanager
def killee() -> Iterator[Killee]:
    one = Killee()
    try:
        yield one
    finally:
        one.process.kill()
        one.process.wait()


class Talker(threading.Thread):
    """Talks until the server is gone, and notes what it was told is kept."""

    def __init__(self, url: str, seed: int):
        super().__init__(daemon=True)
        self.url, self.rng = url, random.Random(seed)
        self.asked: dict[str, tuple[str, str]] = {}  # turn -> conversation, text
        self.answered: dict[str, tuple[str, list[Any]]] = {}  # turn -> conversation, parts

    def run(self) -> None:
        with httpx2.Client(timeout=20) as client, contextlib.suppress(httpx2.HTTPError, ValueError, KeyError):
            while True:
                id = client.post(f"{self.url}/api/conversations", json={}).json()["id"]
                parent = None
                for _ in range(self.rng.randrange(1, 4)):
                    parent = self.turn(client, id, parent)

    def turn(self, client: httpx2.Client, id: str, parent: str | None) -> str | None:
        text = secrets.token_hex(8)
        body = {"text": text, "parent_id": parent, "max_tokens": self.rng.randrange(1, 30)}
        with client.stream("POST", f"{self.url}/api/conversations/{id}/turns", json=body) as found:
            for line in found.iter_lines():
                event = json.loads(line[6:]) if line.startswith("data: ") else {}
                if event.get("type") == "turn" and event["turn"]["role"] == "user":
                    self.asked[event["turn"]["id"]] = id, text
                elif event.get("type") == "done":
                    self.answered[event["turn"]["id"]] = id, event["turn"]["parts"]
                    return event["turn"]["id"]
        return None


def check(store: Store, talkers: list[Talker]) -> int:
    """How many turns were acknowledged; each of them must be there as it was told."""
    n = 0
    for talker in talkers:
        for turn_id, (_, text) in talker.asked.items():
            assert store.turn(turn_id).text == text
            n += 1
        for turn_id, (_, parts) in talker.answered.items():
            turn = store.turn(turn_id)
            assert turn.state == "done" and [{"type": "text", "text": p.text} for p in turn.parts] == parts  # type: ignore[union-attr]
            n += 1
    writing = [t for c in store.conversations(10_000) for t in store.turns(c.id) if t.state == "writing"]
    assert not writing
    return n


def campaign(where: str, n_kills: int, seed: int) -> int:
    rng, acknowledged = random.Random(seed), 0
    with killee() as one:
        for i in range(n_kills):
            pid, url = one.start(where)
            talkers = [Talker(url, seed + i * N_TALKERS + k) for k in range(N_TALKERS)]
            for talker in talkers:
                talker.start()
            deadline = time.monotonic() + 30
            while not any(t.answered for t in talkers) and time.monotonic() < deadline:
                time.sleep(0.01)
            time.sleep(rng.random() * 0.5)
            os.kill(pid, signal.SIGKILL)
            for talker in talkers:
                talker.join(30)
            with open_store(where) as store:
                acknowledged += check(store, talkers)
                if i % 20 == 19:
                    store.delete_all()  # so that a long campaign does not read everything again each time
    return acknowledged


def test_a_killed_server_loses_nothing(tmp_path: Path) -> None:
    assert campaign(str(tmp_path / "chat.db"), 3, 1) > 6


def test_a_killed_server_loses_nothing_on_postgres(postgres: Server) -> None:  # noqa: F811
    assert campaign(postgres.database(), 2, 2) > 4


@pytest.mark.soak
def test_a_thousand_kills(tmp_path: Path, postgres: Server) -> None:  # noqa: F811
    print(f"acknowledged and kept: {campaign(str(tmp_path / 'chat.db'), N_KILLS, 3)} on SQLite, "
          f"{campaign(postgres.database(), N_KILLS, 4)} on PostgreSQL")


def found_in(text: bytes, planted: list[str]) -> list[str]:
    """The secrets that stand in a text: one pass over it, however many there are. None can overlap another."""
    there = {one.decode() for one in re.findall(rb"sk-[0-9a-f]{24}", text)}
    return [secret for secret in planted if secret in there]


def everything(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())


def test_secrets_are_in_no_log_and_after_erasure_in_no_file(tmp_path: Path, caplog: pytest.LogCaptureFixture,
                                                            capfd: pytest.CaptureFixture[str]) -> None:
    """Planted in messages, titles, queries, code, ids, headers; through requests that succeed and that fail."""
    planted = [f"sk-{secrets.token_hex(12)}" for _ in range(N_SECRETS)]
    caplog.set_level(logging.DEBUG)
    for client in ("httpx2", "httpcore2"):  # the test's own, which says what it asks for
        caplog.set_level(logging.WARNING, client)
    with served(stub(tokens_per_s=5000, fail_on=4 + ord("%")), chat=chatting(tmp_path / "chat.db")) as running:
        for i, secret in enumerate(planted):
            _plant(running, i, secret)
        assert len(found_in(everything(tmp_path), planted)) > N_SECRETS // 4  # they are there until erased
        assert CLIENT.delete(f"{running.url}/api/conversations").status_code == 200
        assert found_in(everything(tmp_path), planted) == []
    out, err = capfd.readouterr()
    assert found_in(everything(tmp_path), planted) == []
    assert found_in((caplog.text + out + err).encode(), planted) == []


def _plant(running: Running, i: int, secret: str) -> None:
    kind = i % 8
    if kind == 0:
        id = post(running, "/api/conversations", {"title": f"about {secret}"}).json()["id"]
        CLIENT.patch(f"{running.url}/api/conversations/{id}", json={"title": f"now {secret}"})
    elif kind in (1, 2, 3):  # an answer that succeeds, one that fails in the engine, one that does not fit
        text = (f"keep {secret}", f"% {secret}", f"{secret} " + "long " * 4000)[kind - 1]
        id = post(running, "/api/conversations", {}).json()["id"]
        post(running, f"/api/conversations/{id}/turns", {"text": text, "max_tokens": 3})
    elif kind == 4:
        CLIENT.get(f"{running.url}/api/conversations?query={secret}")
        CLIENT.get(f"{running.url}/api/conversations/{secret}")
        post(running, f"/api/conversations/{secret}/turns", {"text": secret})
    elif kind == 5:
        post(running, "/api/conversations", {"persona": secret, "title": 5})
        post(running, "/api/conversations", b'{"title": "' + secret.encode())
        post(running, "/api/import", secret.encode())
    elif kind == 6:
        post(running, "/api/code", {"task": "patch", "code": f"key = '{secret}'", "instruction": "%", "max_tokens": 3})
    else:
        headers = {"authorization": f"Bearer {secret}", "x-api-key": secret, "cookie": f"key={secret}"}
        post(running, "/api/conversations", {"title": "x"}, **headers)
        CLIENT.post(f"{running.url}/api/import", content=json.dumps([{"title": secret}]).encode(),
                    headers={"content-type": "application/json"})
