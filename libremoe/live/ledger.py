"""The outbound ledger: one line for every request, written before its first byte leaves, and what was spent on keys.

SQLite with a rollback journal, since the version that Debian 12 ships (3.40.1) may corrupt a write-ahead log that
several connections share.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from libremoe.errors import LibremoeError

_SCHEMA = """
CREATE TABLE IF NOT EXISTS requests (
    id INTEGER PRIMARY KEY AUTOINCREMENT, time REAL NOT NULL, host TEXT NOT NULL, why TEXT NOT NULL, sent TEXT NOT NULL,
    bytes_out INTEGER NOT NULL DEFAULT 0, bytes_in INTEGER NOT NULL DEFAULT 0, status TEXT NOT NULL, tag TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS requests_tag ON requests(tag);
CREATE TABLE IF NOT EXISTS spending (
    source TEXT NOT NULL, month TEXT NOT NULL, spent REAL NOT NULL, PRIMARY KEY (source, month));
"""


@dataclass(frozen=True)
class Entry:
    """One request. time: Unix s. sent: method and URL as sent. status: "sending" until it is known how it ended.

    tag: the conversation for which it was made, "" where there is none.
    """

    id: int
    time: float
    host: str
    why: str
    sent: str
    bytes_out: int
    bytes_in: int
    status: str
    tag: str

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


class Ledger:
    """One file, one connection behind a lock; safe from any thread. path: ":memory:" keeps nothing."""

    def __init__(self, path: Path | str, clock: Callable[[], float] = time.time):
        self._clock = clock
        self._lock = threading.Lock()
        self._db = connect(path)
        self._db.executescript(_SCHEMA)

    def close(self) -> None:
        with self._lock:
            self._db.close()

    def begin(self, host: str, why: str, sent: str, tag: str = "") -> int:
        """Writes that a request is about to be made, durably, and returns its id."""
        with self._lock, self._db:
            cursor = self._db.execute(
                "INSERT INTO requests (time, host, why, sent, status, tag) VALUES (?, ?, ?, ?, ?, ?)",
                (self._clock(), host, why, sent, "sending", tag))
            return int(cursor.lastrowid or 0)

    def finish(self, id: int, status: str, bytes_out: int, bytes_in: int) -> None:
        """Adds how it ended: an HTTP status, or a reason."""
        with self._lock, self._db:
            self._db.execute("UPDATE requests SET status = ?, bytes_out = ?, bytes_in = ? WHERE id = ?",
                             (status, bytes_out, bytes_in, id))

    def entries(self, limit: int = 100) -> list[Entry]:
        """The latest first."""
        with self._lock, closing(self._db.execute(
                "SELECT id, time, host, why, sent, bytes_out, bytes_in, status, tag FROM requests "
                "ORDER BY id DESC LIMIT ?", (limit,))) as rows:
            return [Entry(*row) for row in rows]

    def forget(self, tag: str | None = None) -> int:
        """Erases what was asked, for one conversation or (None) for all; that bytes went to a host stays."""
        where, values = ("", ()) if tag is None else (" WHERE tag = ?", (tag,))
        with self._lock, self._db:
            return self._db.execute(f"UPDATE requests SET why = 'erased', sent = '', tag = ''{where}", values).rowcount

    def reserve(self, source: str, cost: float, limit: float) -> None:
        """Counts a cost against this month's limit before it is spent. Raises LibremoeError where it passes it."""
        with self._lock, self._db:
            self._db.execute("BEGIN IMMEDIATE")  # others may count, too
            spent, month = self._spent(source), self._month()
            if spent + cost > limit + 1e-9:
                raise LibremoeError(f"{source}: its limit of {limit:g} a month is reached ({spent:.2f} spent); "
                                    f"remove it and add it with a higher --limit")
            self._db.execute("INSERT INTO spending VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET spent = excluded.spent",
                             (source, month, spent + cost))

    def give_back(self, source: str, cost: float) -> None:
        """What was reserved and not spent."""
        with self._lock, self._db:
            self._db.execute("UPDATE spending SET spent = max(0, spent - ?) WHERE source = ? AND month = ?",
                             (cost, source, self._month()))

    def spent(self, source: str) -> float:
        """This month."""
        with self._lock:
            return self._spent(source)

    def _month(self) -> str:
        return time.strftime("%Y-%m", time.gmtime(self._clock()))

    def _spent(self, source: str) -> float:
        row = self._db.execute("SELECT spent FROM spending WHERE source = ? AND month = ?",
                               (source, self._month())).fetchone()
        return float(row[0]) if row else 0.0


def connect(path: Path | str) -> sqlite3.Connection:
    """A connection for use by one thread at a time, with a rollback journal, and erasing what is deleted."""
    try:
        db = sqlite3.connect(path, timeout=10, check_same_thread=False)
        db.execute("PRAGMA journal_mode = DELETE")
        db.execute("PRAGMA synchronous = FULL")
        db.execute("PRAGMA secure_delete = ON")
    except sqlite3.DatabaseError as error:
        raise LibremoeError(f"{path}: cannot be used as a database: {error}; move it away to begin a new one") from None
    return db
