"""What was read, kept: snapshots of text by their sha256, cut into passages that can be searched offline.

SQLite FTS5 ranks by BM25; what is new counts more. One file with a rollback journal (ledger.py says why).
"""

from __future__ import annotations

import hashlib
import math
import re
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from libremoe.live.agreement import SOCIAL, near_copy
from libremoe.live.ledger import connect
from libremoe.live.parsing import Item
from libremoe.live.values import Excerpt
from libremoe.live.words import fold, is_stop, sentences, word_set, words

PASSAGE = 600  # characters at most, but for a longer sentence, which is cut
MAX_BYTES = 1 << 30  # of the file, where nothing else was said
KEPT_SHARE = 0.9  # of the limit, once it was passed: so that not every new text erases old ones
FADING_DAYS = 30.0  # how fast age takes away at most half of a score
_SCHEMA = """
CREATE TABLE IF NOT EXISTS snapshots (sha256 TEXT PRIMARY KEY, text TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS documents (
    id INTEGER PRIMARY KEY, url TEXT NOT NULL, title TEXT NOT NULL, source TEXT NOT NULL, kind TEXT NOT NULL,
    author TEXT NOT NULL, published REAL, fetched REAL NOT NULL, sha256 TEXT NOT NULL REFERENCES snapshots(sha256),
    UNIQUE (url, sha256));
CREATE TABLE IF NOT EXISTS passages (
    id INTEGER PRIMARY KEY, document_id INTEGER NOT NULL REFERENCES documents(id), start INTEGER NOT NULL,
    "end" INTEGER NOT NULL);
CREATE INDEX IF NOT EXISTS passages_document ON passages(document_id);
CREATE INDEX IF NOT EXISTS documents_fetched ON documents(fetched);
CREATE TABLE IF NOT EXISTS settings (name TEXT PRIMARY KEY, value INTEGER NOT NULL);
CREATE VIRTUAL TABLE IF NOT EXISTS search USING fts5 (title, text, tokenize = 'unicode61 remove_diacritics 2');
CREATE TABLE IF NOT EXISTS visits (
    source TEXT PRIMARY KEY, url TEXT NOT NULL, etag TEXT NOT NULL, modified TEXT NOT NULL, time REAL NOT NULL,
    error TEXT NOT NULL);
"""


@dataclass(frozen=True)
class Visit:
    """The last time that a feed or page was read. etag, modified: to ask only for what is new. error: "" where well."""

    url: str = ""
    etag: str = ""
    modified: str = ""
    time: float = 0.0
    error: str = ""


class Archive:
    """Safe from any thread. path: ":memory:" keeps nothing."""

    def __init__(self, path: Path | str, clock: Callable[[], float] = time.time):
        self._clock = clock
        self._lock = threading.Lock()
        self._db = connect(path)
        self._db.executescript(_SCHEMA)
        if sqlite3.sqlite_version_info >= (3, 42):  # before, `optimize` rewrites the index, in forget()
            with self._db:
                self._db.execute("INSERT INTO search(search, rank) VALUES('secure-delete', 1)")

    def close(self) -> None:
        with self._lock:
            self._db.close()

    def add(self, source: str, kind: str, items: Sequence[Item], fetched: float) -> int:
        """Keeps items; one that is there already, word for word at the same URL, is only marked as seen again. Beyond
        the limit, what was not seen for longest is erased."""
        new = 0
        with self._lock:
            with self._db:
                for item in items:
                    new += self._add(source, kind, item, fetched)
            if new:
                self._keep_to_limit()
        return new

    def _add(self, source: str, kind: str, item: Item, fetched: float) -> bool:
        sha256 = hashlib.sha256(item.text.encode()).hexdigest()
        known = self._db.execute("UPDATE documents SET fetched = ? WHERE url = ? AND sha256 = ?",
                                 (fetched, item.url, sha256))
        if known.rowcount:
            return False
        self._db.execute("INSERT OR IGNORE INTO snapshots VALUES (?, ?)", (sha256, item.text))
        document = self._db.execute(
            "INSERT INTO documents (url, title, source, kind, author, published, fetched, sha256) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (item.url, item.title, source, kind, item.author, item.published, fetched, sha256)).lastrowid
        for start, end in passages(item.text):
            row = self._db.execute("INSERT INTO passages (document_id, start, \"end\") VALUES (?, ?, ?)",
                                   (document, start, end)).lastrowid
            self._db.execute("INSERT INTO search (rowid, title, text) VALUES (?, ?, ?)",
                             (row, item.title, item.text[start:end]))
        return True

    @property
    def limit(self) -> int:
        """Bytes that the archive may occupy; kept in its file."""
        with self._lock:
            return self._limit()

    @limit.setter
    def limit(self, value: int) -> None:
        with self._lock:
            with self._db:
                self._db.execute("INSERT OR REPLACE INTO settings VALUES ('limit', ?)", (value,))
            self._keep_to_limit()

    def size(self) -> int:
        """Bytes in use."""
        with self._lock:
            return self._size()

    def _limit(self) -> int:
        row = self._db.execute("SELECT value FROM settings WHERE name = 'limit'").fetchone()
        return MAX_BYTES if row is None else int(row[0])

    def _size(self) -> int:
        pages, free, bytes_each = (int(self._db.execute(f"PRAGMA {name}").fetchone()[0])
                                   for name in ("page_count", "freelist_count", "page_size"))
        return (pages - free) * bytes_each

    def _keep_to_limit(self) -> None:
        """Not within a transaction: the index is written, and its size known, when one ends."""
        limit, size = self._limit(), self._size()
        if size <= limit:
            return
        while size > KEPT_SHARE * limit and (count := self._count()):
            most = max(1, int(count * (1 - KEPT_SHARE * limit / size)))
            with self._db:
                self._erase("WHERE id IN (SELECT id FROM documents ORDER BY fetched, id LIMIT ?1)", (most,))
            size = self._size()

    def search(self, query: str, limit: int = 20) -> list[Excerpt]:
        """Passages that hold words of the query, the best first, numbered from 1.

        Near-copies of a better one are left out where their numbers are the same, too.
        """
        match = " OR ".join(f'"{w}"' for w in keywords(query))
        if not match:
            return []
        with self._lock, closing(self._db.execute(
                "SELECT d.title, d.url, d.source, d.kind, d.published, d.fetched, s.text, d.sha256, "
                "p.start, p.\"end\", d.author, bm25(search, 2.0, 1.0) "
                "FROM search JOIN passages p ON p.id = search.rowid "
                "JOIN documents d ON d.id = p.document_id JOIN snapshots s ON s.sha256 = d.sha256 "
                "WHERE search MATCH ? ORDER BY bm25(search, 2.0, 1.0) LIMIT ?", (match, 10 * limit))) as rows:
            found = [(self._score(row[11], row[4], row[5]), row) for row in rows]
        found.sort(key=lambda pair: -pair[0])
        chosen: list[Excerpt] = []
        for _, row in found:
            title, url, source, kind, published, fetched, text, sha256, start, end, author, _ = row
            one = Excerpt(len(chosen) + 1, title, url, source, kind, published, fetched, text[start:end], sha256,
                          start, end, author)
            if not any(_repeats(one, other) for other in chosen):
                chosen.append(one)
            if len(chosen) == limit:
                break
        return chosen

    def _score(self, bm25: float, published: float | None, fetched: float) -> float:
        """bm25: lower is better, as SQLite gives it."""
        age_days = max(0.0, self._clock() - (published if published is not None else fetched)) / 86400
        return -bm25 * (0.5 + 0.5 * math.exp(-age_days / FADING_DAYS))

    def snapshot(self, sha256: str) -> str | None:
        """The exact text, whose UTF-8 bytes have this hash."""
        with self._lock:
            row = self._db.execute("SELECT text FROM snapshots WHERE sha256 = ?", (sha256,)).fetchone()
        return None if row is None else str(row[0])

    def count(self) -> int:
        """Documents."""
        with self._lock:
            return self._count()

    def _count(self) -> int:
        return int(self._db.execute("SELECT count(*) FROM documents").fetchone()[0])

    def visit(self, source: str) -> Visit:
        with self._lock:
            row = self._db.execute("SELECT url, etag, modified, time, error FROM visits WHERE source = ?",
                                   (source,)).fetchone()
        return Visit(*row) if row else Visit()

    def visited(self, source: str, visit: Visit) -> None:
        with self._lock, self._db:
            self._db.execute("INSERT OR REPLACE INTO visits VALUES (?, ?, ?, ?, ?, ?)",
                             (source, visit.url, visit.etag, visit.modified, visit.time, visit.error))

    def forget(self, source: str | None = None, before: float | None = None) -> int:
        """Erases documents: of a source, or fetched last before a time (Unix s), or all. Returns how many."""
        where = "WHERE (?1 IS NULL OR source = ?1) AND (?2 IS NULL OR fetched < ?2)"
        with self._lock, self._db:
            gone = self._erase(where, (source, before))
            if source is not None:
                self._db.execute("DELETE FROM visits WHERE source = ?", (source,))
        return gone

    def _erase(self, where: str, values: tuple[Any, ...]) -> int:
        old = f"SELECT id FROM passages WHERE document_id IN (SELECT id FROM documents {where})"
        self._db.execute(f"DELETE FROM search WHERE rowid IN ({old})", values)
        self._db.execute(f"DELETE FROM passages WHERE id IN ({old})", values)
        gone = self._db.execute(f"DELETE FROM documents {where}", values).rowcount
        self._db.execute("DELETE FROM snapshots WHERE sha256 NOT IN (SELECT sha256 FROM documents)")
        if gone:
            self._db.execute("INSERT INTO search(search) VALUES('optimize')")  # the index lets go of old words
        return gone


def passages(text: str) -> list[tuple[int, int]]:
    """(start, end) of stretches of whole sentences that are not longer than PASSAGE, together all of the text."""
    found: list[tuple[int, int]] = []
    for start, end in sentences(text):
        if found and end - found[-1][0] <= PASSAGE:
            found[-1] = (found[-1][0], end)
        else:
            found += [(s, min(s + PASSAGE, end)) for s in range(start, end, PASSAGE)]
    return found


def keywords(query: str, most: int = 12) -> list[str]:
    """Words of a question that something can be searched by, and its numbers, in order, once each."""
    numbers = re.findall(r"\d[\d.,]*\d|\d", query)
    found = [w for w, _ in words(query) if not is_stop(w) and len(w) > 1 and fold(w) not in _ASKING] + numbers
    cleaned = (re.sub(r"[\"\x00]", "", w) for w in found)
    return list(dict.fromkeys(w for w in cleaned if w))[:most]


_ASKING = word_set("""
new news latest today recent recently happened happen happening tell know please hi hello say think
nouveau nouveautés nouvelle nouvelles actualité actualités aujourd'hui hui récemment dernier derniers dernières passe
passé quoi neuf sais dis bonjour salut""")


def _repeats(one: Excerpt, other: Excerpt) -> bool:
    """Whether an excerpt says nothing that the other does not, number for number."""
    if one.snapshot_sha256 == other.snapshot_sha256:
        return one.start == other.start or one.text == other.text
    if one.kind in SOCIAL and one.author != other.author:
        return False  # how many people say it counts
    return near_copy(one.text, other.text) and re.findall(r"\d+", one.text) == re.findall(r"\d+", other.text)
