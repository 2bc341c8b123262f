"""The store of conversations: what it keeps, on SQLite and on PostgreSQL, is what a plain twin in memory keeps."""

from __future__ import annotations

import random
import sqlite3
import subprocess
import sys
import threading
import traceback
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from conversations import Twin, act, compare
from postgres_server import Server, postgres  # noqa: F401  the fixture

import libremoe.chat.schema
from libremoe.chat.conversation import Conversation, NotFound, Turn
from libremoe.chat.message import Text
from libremoe.chat.schema import HEAD, VERSION_TABLE, metadata, snippet, words
from libremoe.chat.store import NotSaved, open_store
from libremoe.errors import LibremoeError


def twin_run(where: str, seed: int, n_acts: int) -> None:
    rnd, twin = random.Random(seed), Twin()
    store = open_store(where)
    try:
        for i in range(n_acts):
            act(store, twin, rnd)
            if i % 20 == 19:
                compare(store, twin, rnd)
            if rnd.random() < 0.01 and where != ":memory:":
                store.close()
                store = open_store(where)
                for tree in twin.trees.values():  # nobody writes on
                    tree[:] = [t if t.state != "writing" else Turn(**{**vars(t), "state": "stopped"}) for t in tree]
        compare(store, twin, rnd)
    finally:
        store.close()


@pytest.mark.parametrize("seed", range(6))
def test_sqlite_is_its_twin(seed: int, tmp_path: Path) -> None:
    twin_run(str(tmp_path / "chat.db") if seed else ":memory:", seed, 150)


@pytest.mark.parametrize("seed", range(2))
def test_postgres_is_its_twin(seed: int, postgres: Server) -> None:  # noqa: F811
    twin_run(postgres.database(), seed, 150)


# --- opening ---

def test_another_process_is_refused_in_a_sentence(tmp_path: Path) -> None:
    """And so is this one a second time, and any other program; afterwards all are let in."""
    path = tmp_path / "chat.db"
    code = f"from libremoe.chat.store import open_store\nopen_store({str(path)!r}).create('theirs')"
    with open_store(path) as store:
        store.create("ours")
        with pytest.raises(LibremoeError, match="another libremoe has these conversations open"):
            open_store(path)
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert done.returncode and "another libremoe has these conversations open" in done.stderr
        plain = f"import sqlite3\nsqlite3.connect({str(path)!r}, timeout=0).execute('SELECT * FROM turns')"
        assert "locked" in subprocess.run([sys.executable, "-c", plain], capture_output=True, text=True).stderr
    subprocess.run([sys.executable, "-c", code], check=True)
    with open_store(path) as store:
        assert {c.title for c in store.conversations()} == {"ours", "theirs"}


def test_a_second_process_on_postgres_stops_nobody(postgres: Server) -> None:  # noqa: F811
    where = postgres.database()
    with open_store(where) as one:
        conversation = one.create()
        turn = one.add(conversation.id, None, "assistant", (Text("so far"),), "writing")
        with open_store(where) as other:
            assert other.turn(turn.id).state == "writing"
            other.add(conversation.id, turn.id, "user", (Text("hello"),))
        assert one.update(turn.id, (Text("so far, and on"),)).state == "writing"
    with open_store(where) as later:
        assert later.turn(turn.id).state == "stopped" and later.search("far")[0].turn_id == turn.id


def test_only_its_owner_reads_the_file(tmp_path: Path) -> None:
    with open_store(tmp_path / "new" / "chat.db") as store:
        store.create("secret")
        assert {path.name for path in (tmp_path / "new").iterdir()} == {"chat.db", "chat.db-wal"}
        assert all(path.stat().st_mode & 0o077 == 0 for path in [tmp_path / "new", *(tmp_path / "new").iterdir()])


def test_settings_that_durability_and_erasure_rest_on(tmp_path: Path) -> None:
    with open_store(tmp_path / "chat.db") as store:
        settings = {name: store._database._pragma(name) for name in (  # type: ignore[union-attr]
            "journal_mode", "synchronous", "secure_delete", "foreign_keys", "locking_mode", "temp_store")}
    assert settings == {"journal_mode": "wal", "synchronous": 2, "secure_delete": 1, "foreign_keys": 1,
                        "locking_mode": "exclusive", "temp_store": 2}


@pytest.mark.parametrize("content", [b"hello, I am no database" * 50, b"SQLite format 3\0" + b"\xff" * 4000])
def test_a_file_of_another_kind_is_left_as_it_is(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "chat.db").write_bytes(content)
    with pytest.raises(LibremoeError, match=r"chat\.db: "):
        open_store(tmp_path / "chat.db")
    assert (tmp_path / "chat.db").read_bytes() == content


def test_a_database_of_a_newer_version_is_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "chat.db"
    open_store(path).close()
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE libremoe_version SET version_num = '9999'")
    connection.close()
    with pytest.raises(LibremoeError, match="written by a newer libremoe"):
        open_store(path)


@pytest.mark.parametrize("where", ["mysql://root:hunter2@host/x", "postgresql://me:hunter2@[broken/x",
                                   "postgresql://me:hunter2@127.0.0.1:9/x", "/proc/nowhere/chat.db"])
def test_what_cannot_be_opened_is_said_without_the_password(where: str) -> None:
    with pytest.raises(LibremoeError) as refused:
        open_store(where)
    assert "hunter2" not in str(refused.value)


def test_errors_and_logs_show_no_text_of_a_person(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Statements are logged and fail without their parameters."""
    secret = "hunter" * 2
    with caplog.at_level("INFO", "sqlalchemy.engine"), open_store(tmp_path / "chat.db") as store:
        conversation = store.create(secret)
        store.add(conversation.id, None, "user", (Text(secret),))
        assert store.search(secret)
        store._database._raw.execute("DROP TABLE search")  # type: ignore[union-attr]
        with pytest.raises(NotSaved) as refused:
            store.add(conversation.id, None, "user", (Text(secret),))
    assert secret not in "".join(traceback.format_exception(refused.value))
    assert "INSERT INTO turns" in caplog.text and secret not in caplog.text


# --- migrations ---

@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
def test_migrations_make_the_tables_of_the_code(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    where = str(tmp_path / "chat.db") if kind == "sqlite" else request.getfixturevalue("postgres").database()
    with open_store(where) as store:
        def differences(connection: sa.Connection) -> list[object]:
            ours = MigrationContext.configure(connection, opts={
                "version_table": VERSION_TABLE, "compare_type": True,
                "include_name": lambda name, kind, parents: kind != "table" or not name.startswith("search")})
            return list(compare_metadata(ours, metadata))

        assert store._database.read(differences) == []
    steps = ScriptDirectory(str(Path(libremoe.chat.schema.__file__).parent / "migrations"))
    assert steps.get_heads() == [HEAD] == [max(step.revision for step in steps.walk_revisions())]


# --- what the twin does not show ---

def test_threads_lose_nothing_and_order_holds(tmp_path: Path) -> None:
    with open_store(tmp_path / "chat.db") as store:
        ids = [store.create(str(i)).id for i in range(6)]
        added: dict[str, list[str]] = {i: [] for i in ids}

        def write(its_id: str) -> None:
            for i in range(30):
                parent = added[its_id][-1] if added[its_id] else None
                added[its_id].append(store.add(its_id, parent, "user", (Text(f"word{i}"),)).id)
                if i % 7 == 0:
                    with pytest.raises(NotFound):
                        store.add(its_id, "0" * 32, "user", ())
                assert len(store.path(its_id)) == i + 1

        threads = [threading.Thread(target=write, args=(i,)) for i in ids]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert {i: [turn.id for turn in store.turns(i)] for i in ids} == added
        assert len(store.search("word29", 999)) == 6


def test_one_bad_act_spoils_no_other(tmp_path: Path) -> None:
    """Acts that share a commit: each gets its own answer."""
    with open_store(tmp_path / "chat.db") as store:
        conversation = store.create()
        answers: dict[int, object] = {}

        def write(i: int) -> None:
            try:
                parent = "0" * 32 if i % 3 == 0 else None
                details = {"a": object()} if i % 3 == 1 else {}
                answers[i] = store.add(conversation.id, parent, "user", (Text(str(i)),), details=details).id
            except (NotFound, TypeError) as error:
                answers[i] = type(error)

        threads = [threading.Thread(target=write, args=(i,)) for i in range(30)]
        with store._database._lock:  # type: ignore[union-attr]  all queue up behind it
            for thread in threads:
                thread.start()
        for thread in threads:
            thread.join()
        kept = {turn.id: int(turn.text) for turn in store.turns(conversation.id)}
        for i, answer in answers.items():
            assert answer is [NotFound, TypeError][i % 3] if i % 3 < 2 else kept.pop(str(answer)) == i
        assert not kept


def test_pages_of_conversations_leave_nobody_out() -> None:
    """Even where many were changed in the same moment, as those of an import."""
    with open_store(":memory:") as store:
        ids = {store.insert(Conversation("", str(i), updated=1000.0 + i // 7), []).id for i in range(50)}
        seen: list[str] = []
        before = None
        while page := store.conversations(limit=5, before=before):
            seen += [c.id for c in page]
            before = page[-1].updated
        assert len(seen) == 50 and set(seen) == ids


def test_insert_takes_any_order_and_refuses_what_is_no_tree() -> None:
    parents = {"c": "b", "a": None, "b": "a", "d": "a"}
    turns = [Turn(i, "c", parent, "user", (Text(i),)) for i, parent in parents.items()]
    with open_store(":memory:") as store:
        kept = store.insert(Conversation("c", "t", leaf_id="c"), turns)
        assert [t.text for t in store.turns(kept.id)] == ["a", "b", "c", "d"]
        assert [t.text for t in store.path(kept.id)] == ["a", "b", "c"]
        for bad in (turns[:1], [*turns, turns[0]], [Turn("x", "c", "x", "user", ())]):
            with pytest.raises(LibremoeError):
                store.insert(Conversation("c", "t"), bad)
        with pytest.raises(LibremoeError):
            store.insert(Conversation("c", "t", leaf_id="z"), turns)
        assert len(store.conversations()) == 1


def test_words() -> None:
    assert words("L'ÉTÉ, déjà-vu; don't 12.5 snake_case") == [
        "l", "ete", "deja", "vu", "don", "t", "12", "5", "snake", "case"]
    assert words("Straße ΌΧΙ ёж") == ["strasse", "οχι", "еж"] and words("夜の海") == ["夜", "の", "海"]
    assert words("\ud800\x00 \u202ex") == ["x"] and len(words("x" * 100)[0]) == 64


def test_snippets_show_the_word() -> None:
    text = "before " * 100 + "the Éclair is here " + "after " * 100
    found = snippet(text, ["ecl"])
    assert "Éclair" in found and len(found) < 300 and found.startswith("…") and found.endswith("…")
    assert snippet("short", ["x"]) == "short"
