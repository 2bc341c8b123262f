"""The store of conversations: what it keeps, on SQLite and on PostgreSQL, is what a plain twin in memory keeps."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from conversations import Twin, act, compare
from postgres_server import Server, postgres  # noqa: F401  the fixture

from libremoe.chat.conversation import Turn
from libremoe.chat.store import open_store


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


@pytest.mark.parametrize("seed", range(3))
def test_postgres_is_its_twin(seed: int, postgres: Server) -> None:  # noqa: F811
    twin_run(postgres.database(), seed, 150)
