"""What was acknowledged is there: after kill -9 of the writer or of the server, a failing or full disk, a power cut.
And what was erased is not: in no file."""

from __future__ import annotations

import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from conversations import bytes_in
from postgres_server import Server, postgres  # noqa: F401  the fixture

from libremoe.chat.store import NotFound, Store, open_store

HERE = Path(__file__).parent


class Victim:
    """tests/store_writer.py as a process, and what its children said."""

    def __init__(self, preload: Path | None = None):
        env = {**os.environ, "PYTHONPATH": str(HERE.parent)} | ({"LD_PRELOAD": str(preload)} if preload else {})
        self.process = subprocess.Popen([sys.executable, str(HERE / "store_writer.py")], env=env, text=True,
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def begin(self, **task: Any) -> int:
        """Returns the writer's process id."""
        assert self.process.stdin and self.process.stdout
        print(json.dumps({"n_threads": 3, **task}), file=self.process.stdin, flush=True)
        word, pid = self.process.stdout.readline().split()
        assert word == "pid"
        return int(pid)

    def ended(self) -> int:
        """Its status once it has ended."""
        assert self.process.stdout
        word, status = self.process.stdout.readline().split()
        assert word == "ended"
        return int(status)

    def close(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait(60)


@contextmanager
def victim(preload: Path | None = None) -> Iterator[Victim]:
    v = Victim(preload)
    try:
        yield v
    finally:
        v.close()


class Acks:
    """What writers said they were told, read as it grows."""

    def __init__(self, path: Path):
        self.path = path
        self.at = 0
        self.turns: dict[str, dict[str, str]] = {}
        self.deleting: set[str] = set()
        self.deleted: set[str] = set()
        self.refused: list[str] = []
        self.n_open = 0

    def read(self) -> list[dict[str, Any]]:
        """The new lines."""
        if not self.path.exists():
            return []
        with self.path.open("rb") as file:
            file.seek(self.at)
            data = file.read()
        self.at += len(data)
        assert not data or data.endswith(b"\n")
        lines = [json.loads(line) for line in data.splitlines()]
        for line in lines:
            assert "crashed" not in line, line["crashed"]
            if "turn" in line:
                self.turns[line["turn"]] = line
            elif "deleting" in line:
                self.deleting.add(line["deleting"])
            elif "deleted" in line:
                self.deleted.add(line["deleted"])
            elif "refused" in line:
                self.refused.append(line["refused"])
            else:
                self.n_open += 1
        return lines

    def check(self, store: Store, lines: list[dict[str, Any]]) -> None:
        """What these lines say is true of the store. A later update that nobody was told of may be there, too."""
        for line in lines:
            if "deleted" in line:
                with pytest.raises(NotFound):
                    store.conversation(line["deleted"])
        for turn_id in {line["turn"] for line in lines if "turn" in line}:
            line = self.turns[turn_id]
            try:
                turn = store.turn(turn_id)
            except NotFound:
                assert line["conversation"] in self.deleting, f"lost: {line}"
                with pytest.raises(NotFound):  # all of it is gone
                    store.conversation(line["conversation"])
                continue
            assert turn.text.startswith(line["text"]), f"lost: {line}"
            assert turn.state in (("done",) if line["state"] == "done" else ("stopped", "done"))
            word = line["text"].split()[0]
            assert [hit.turn_id for hit in store.search(word)] == [turn_id]

    def check_all(self, store: Store) -> None:
        self.check(store, list(self.turns.values()) + [{"deleted": i} for i in self.deleted])


def whole(path: Path) -> None:
    """The file and its index are sound."""
    with sqlite3.connect(path) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        connection.execute("INSERT INTO search(search) VALUES ('integrity-check')")
    connection.close()


def kill_campaign(where: str, folder: Path, n_kills: int, seed: int, deletes: float) -> Acks:
    """Writers killed with -9 at random moments, in their opening or when they write; n_kills of them."""
    rnd, acks = random.Random(seed), Acks(folder / "acks")
    with victim() as writers:
        for i in range(n_kills):
            n_open = acks.n_open
            pid = writers.begin(where=where, acks=str(acks.path), seed=i, deletes=deletes)
            lines: list[dict[str, Any]] = []
            if rnd.random() < 0.8:
                while acks.n_open == n_open:
                    time.sleep(0.002)
                    lines += acks.read()
                    assert not acks.refused, acks.refused
            time.sleep(rnd.random() * 0.08)
            os.kill(pid, signal.SIGKILL)
            assert writers.ended() == -signal.SIGKILL
            lines += acks.read()
            assert not acks.refused, acks.refused
            with open_store(where) as store:
                acks.check(store, lines)
                if i == n_kills - 1:
                    acks.check_all(store)
    assert acks.turns
    return acks


def test_sqlite_loses_nothing_to_30_kills(tmp_path: Path) -> None:
    path = tmp_path / "db" / "chat.db"
    acks = kill_campaign(str(path), tmp_path, 30, seed=1, deletes=1)
    whole(path)
    gone = [line["text"].split()[0] for line in acks.turns.values() if line["conversation"] in acks.deleted]
    nothing_left(path.parent, gone)


def test_postgres_loses_nothing_to_30_kills(tmp_path: Path, postgres: Server) -> None:  # noqa: F811
    kill_campaign(postgres.database(), tmp_path, 30, seed=2, deletes=0.1)


def nothing_left(folder: Path, planted: list[str]) -> None:
    data = bytes_in(folder)
    assert not [secret for secret in planted if secret.encode() in data]
