"""What was acknowledged is there: after kill -9 of the writer or of the server, a failing or full disk, a power cut.
And what was erased is not: in no file."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import random
import secrets
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from conversations import bytes_in
from postgres_server import Server, postgres  # noqa: F401  the fixture

from libremoe.chat.databases import SqliteFile
from libremoe.chat.message import Text, ToolCall, ToolResult
from libremoe.chat.store import NotFound, Store, open_store

HERE = Path(__file__).parent
N_KILLS = int(os.environ.get("LIBREMOE_SOAK_KILLS", "1000"))


class Victim:
    """tests/store_writer.py as a process, and what its children said."""

    def __init__(self, preload: Path | None = None):
        env = {**os.environ, "PYTHONPATH": str(HERE.parent)} | ({"LD_PRELOAD": str(preload)} if preload else {})
        self.process = subprocess.Popen([sys.executable, str(HERE / "store_writer.py")], env=env, text=True,
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)

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
        """Writers that a failed test left behind end too."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.communicate()


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
        data = data[: data.rfind(b"\n") + 1]  # a long line may be seen while it is written
        self.at += len(data)
        lines = [json.loads(line) for line in data.splitlines() if line.endswith(b"}")]  # kill -9 may cut one short
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
            if rnd.random() < 0.8:  # let it open and do some acts, however slow the machine is
                n_wanted = rnd.randrange(20)
                while acks.n_open == n_open or len(lines) < n_wanted:
                    time.sleep(0.002)
                    lines += acks.read()
                    assert not acks.refused, acks.refused
            time.sleep(rnd.random() * 0.02)
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
    sqlite_kills(tmp_path, 30)


@pytest.mark.soak
def test_sqlite_loses_nothing_to_1000_kills(tmp_path: Path) -> None:
    sqlite_kills(tmp_path, N_KILLS)


def sqlite_kills(folder: Path, n_kills: int) -> None:
    path = folder / "db" / "chat.db"
    acks = kill_campaign(str(path), folder, n_kills, seed=1, deletes=1)
    print(f"{n_kills} kills, {len(acks.turns)} turns and {len(acks.deleted)} deletions acknowledged: none lost")
    whole(path)
    nothing_left(path.parent, acks)


def test_postgres_loses_nothing_to_30_kills(tmp_path: Path, postgres: Server) -> None:  # noqa: F811
    kill_campaign(postgres.database(), tmp_path, 30, seed=2, deletes=0.1)


@pytest.mark.soak
def test_postgres_loses_nothing_to_1000_kills(tmp_path: Path, postgres: Server) -> None:  # noqa: F811
    acks = kill_campaign(postgres.database(), tmp_path, N_KILLS, seed=2, deletes=0.1)
    print(f"{N_KILLS} kills, {len(acks.turns)} turns and {len(acks.deleted)} deletions acknowledged: none lost")


def nothing_left(folder: Path, acks: Acks) -> None:
    """No byte of what was deleted, or of what a deletion that nobody was told of took away."""
    with open_store(folder / "chat.db") as store:
        kept = {c.id for c in store.conversations(10**6)}
    gone = [line["text"].split()[0] for line in acks.turns.values() if line["conversation"] not in kept]
    assert not left_in(folder, gone)


def left_in(folder: Path, words: Iterable[str]) -> list[str]:
    """Words whose end is in some file: an index keeps what a word has in common with the one before it only once."""
    data = bytes_in(folder)
    return [word for word in words if word[8:].encode() in data]


def test_postgres_loses_nothing_when_its_server_is_killed(tmp_path: Path, postgres: Server) -> None:  # noqa: F811
    """The writer lives on and is told so; what it was told to be saved before and after is there."""
    where, acks = postgres.database(), Acks(tmp_path / "acks")
    with victim() as writers:
        for i in range(2):
            pid = writers.begin(where=where, acks=str(acks.path), seed=i, deletes=0)
            n_before = len(acks.turns)
            while len(acks.turns) < n_before + 5:
                acks.read()
                time.sleep(0.01)
            postgres.kill()
            postgres.start()
            n_after = len(acks.turns)
            while len(acks.turns) < n_after + 5:  # its connections come back
                acks.read()
                time.sleep(0.01)
            os.kill(pid, signal.SIGKILL)
            writers.ended()
            acks.read()
            with open_store(where) as store:
                acks.check_all(store)
    assert acks.refused and all("server" in sentence for sentence in acks.refused)


# --- disks that fail, fill up or lose power ---

@pytest.fixture(scope="module")
def faulty_disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("g++") or shutil.which("c++")
    if compiler is None or not sys.platform.startswith("linux"):
        pytest.skip("needs Linux and a C++ compiler")
    built = tmp_path_factory.mktemp("faulty") / "faulty_disk.so"
    subprocess.run([compiler, "-O1", "-shared", "-fPIC", "-o", built, HERE / "faulty_disk.cpp", "-ldl"], check=True)
    return built


@pytest.mark.parametrize("error", [errno.EIO, errno.ENOSPC], ids=["EIO", "ENOSPC"])
def test_every_nth_write_fails(error: int, faulty_disk: Path, tmp_path: Path) -> None:
    with victim(faulty_disk) as writers:
        for every in (1, 8, 30):
            folder = tmp_path / str(every)
            folder.mkdir()
            acks = Acks(folder / "acks")
            writers.begin(where=str(folder / "db" / "chat.db"), acks=str(acks.path), seed=every, n_acts=25,
                          fault={"part": "chat.db", "every": every, "errno": error}, deletes=4)
            assert writers.ended() == 0
            acks.read()
            assert acks.refused and all("disk" in sentence for sentence in acks.refused)
            assert acks.turns or every < 30  # a commit is several writes
            with open_store(folder / "db" / "chat.db") as store:
                acks.check_all(store)
            whole(folder / "db" / "chat.db")
            nothing_left(folder / "db", acks)


def test_a_disk_that_is_full_says_so_and_loses_nothing(tmp_path: Path) -> None:
    """Files may not grow past 2 MiB, as if a quota ended there."""
    path, acks = tmp_path / "db" / "chat.db", Acks(tmp_path / "acks")
    with victim() as writers:
        writers.begin(where=str(path), acks=str(acks.path), seed=1, n_acts=300, deletes=0, file_limit=2 << 20)
        assert writers.ended() == 0
        acks.read()
        assert acks.turns and acks.refused and all("disk" in sentence for sentence in acks.refused)
        n_before = len(acks.turns)
        with open_store(path) as store:
            acks.check_all(store)
        whole(path)
        writers.begin(where=str(path), acks=str(acks.path), seed=2, n_acts=20)  # with space again
        assert writers.ended() == 0
        acks.read()
        assert len(acks.turns) > n_before
        with open_store(path) as store:
            acks.check_all(store)


def power_cuts(faulty_disk: Path, folder: Path, n_cuts: int) -> Acks:
    path, acks, rnd = folder / "db" / "chat.db", Acks(folder / "acks"), random.Random(4)
    with victim(faulty_disk) as writers:
        for i in range(n_cuts):
            writers.begin(where=str(path), acks=str(acks.path), seed=i, deletes=1,
                          fault={"part": "chat.db", "cut": rnd.randrange(1, 400)})
            assert writers.ended() == 99
            lines = acks.read()
            assert not acks.refused, acks.refused
            with open_store(path) as store:
                acks.check(store, lines)
            whole(path)
    with open_store(path) as store:
        acks.check_all(store)
    nothing_left(path.parent, acks)
    return acks


def test_20_power_cuts_lose_nothing(faulty_disk: Path, tmp_path: Path) -> None:
    """Of what was written since the last sync a random part is on the disk, some of it torn."""
    assert power_cuts(faulty_disk, tmp_path, 20).turns


@pytest.mark.soak
def test_1000_power_cuts_lose_nothing(faulty_disk: Path, tmp_path: Path) -> None:
    acks = power_cuts(faulty_disk, tmp_path, N_KILLS)
    print(f"{N_KILLS} power cuts, {len(acks.turns)} acknowledged turns: none lost")


# --- secrets ---

def plant(store: Store, rnd: random.Random, n_secrets: int) -> tuple[str, list[str]]:
    """A conversation with secrets in all that it can hold."""
    planted = [f"zq{secrets.token_hex(10)}" for _ in range(n_secrets)]
    noise = [f"word{rnd.randrange(5000)}" for _ in range(rnd.randrange(600))]
    conversation = store.create(planted[0], persona=planted[1])
    parent = None
    for secret in planted[2:]:
        place = rnd.randrange(6)
        text = " ".join([*noise[:len(noise) // 2], secret, *noise[len(noise) // 2:]])
        parts: tuple[Any, ...] = (Text(text),) if place < 3 else (ToolCall("i", "f", text), ToolResult("i", text))
        turn = store.add(conversation.id, parent, "assistant", (Text(text),) if place == 5 else parts,
                         details={"sources": [{"text": secret}]} if place == 1 else {})
        if place == 5:
            store.update(turn.id, (Text("took it back"),))
        parent = turn.id if rnd.random() < 0.8 else parent
    if rnd.random() < 0.5:
        store.rename(conversation.id, "another name")
    return conversation.id, planted


def files_with(folder: Path, words: list[str]) -> list[str]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return [str(path.relative_to(folder)) for path in files if any(w[8:].encode() in path.read_bytes() for w in words)]


def secrets_campaign(store: Store, folder: Path, n_secrets: int, n_each: int,
                     flush: Callable[[], Any] = lambda: None) -> None:
    """Planted, found in the files, deleted one conversation after the other, and not found; what stays stays."""
    rnd, n_done = random.Random(6), 0
    standing: list[tuple[str, list[str]]] = []
    keeper, kept = plant(store, rnd, n_each)
    while n_done < n_secrets:
        while len(standing) < 8:
            standing.append(plant(store, rnd, n_each))
        conversation_id, planted = standing.pop(rnd.randrange(len(standing)))
        flush()
        assert left_in(folder, planted), "the search of the files would find nothing"
        store.delete(conversation_id)
        left = left_in(folder, planted)
        assert not left, f"{len(left)} of {len(planted)} secrets are left after {n_done}: {files_with(folder, left)}"
        assert not any(store.search(secret) for secret in planted)
        n_done += len(planted)
    assert [t.text for t in store.turns(keeper)] and store.search(kept[2])
    store.delete_all()
    assert not left_in(folder, [secret for _, planted in [*standing, (keeper, kept)] for secret in planted])
    print(f"{n_done} secrets deleted, 0 left in any file")


def test_500_secrets_leave_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("DEBUG"), open_store(tmp_path / "chat.db") as store:
        secrets_campaign(store, tmp_path, 500, 25)
    assert "zq" not in caplog.text


def test_an_erasure_that_was_cut_short_is_finished_at_the_next_start(tmp_path: Path) -> None:
    """Without secure_delete, so that nothing but the rewriting can erase. The second deletion shows it alone, too."""
    path = tmp_path / "chat.db"
    with open_store(path) as store:
        database = store._database
        assert isinstance(database, SqliteFile)
        database._pragma("secure_delete=OFF")
        rnd = random.Random(1)
        (one, planted), (other, others), (_, kept) = (plant(store, rnd, 12) for _ in range(3))
        database.erase = lambda: None  # type: ignore[method-assign]
        store.delete(one)
        assert left_in(tmp_path, planted), "there would be nothing to finish"
    assert left_in(tmp_path, planted)
    with open_store(path) as store:
        assert not left_in(tmp_path, planted)
        assert isinstance(store._database, SqliteFile)
        store._database._pragma("secure_delete=OFF")
        store.delete(other)
        assert not left_in(tmp_path, others) and left_in(tmp_path, kept)


@pytest.mark.soak
def test_10000_secrets_leave_nothing(tmp_path: Path) -> None:
    with open_store(tmp_path / "chat.db") as store:
        secrets_campaign(store, tmp_path, 10_000, 25)


def test_secrets_leave_the_tables_of_postgres(postgres: Server) -> None:  # noqa: F811
    """With a role that may do nothing special: tables, indexes, statistics. The write-ahead log is the server's."""
    where = postgres.database()
    with open_store(where) as store:
        for _ in range(4):
            plant(store, random.Random(1), 12)
        postgres.sql("ANALYZE", where.partition("?")[0].rpartition("/")[2])
        secrets_campaign(store, postgres.data / "base", 36, 12, lambda: postgres.sql("CHECKPOINT"))


def test_secrets_leave_every_file_of_postgres(postgres: Server) -> None:  # noqa: F811
    """With wal_recycle = off, no archive and no replica, and a role that may checkpoint: the log and all files."""
    with open_store(postgres.database("libremoe")) as store:
        secrets_campaign(store, postgres.folder, 24, 12)
