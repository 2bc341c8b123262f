"""The tables that conversations are kept in, and the words by which they are found.

The numbered steps in migrations/versions make these tables; a test holds both together. Texts are JSON in text columns,
so that any text comes back as it was, NUL and lone surrogates included, on every database.

The table search stands outside of the metadata: an FTS5 table on SQLite, a tsvector with a GIN index on PostgreSQL. Its
rowid is a turn's seq, or minus a conversation's seq for its title. Both databases index what words() makes and both
match by the beginnings of words, so that a search finds the same everywhere.
"""

from __future__ import annotations

import re
import unicodedata

import sqlalchemy as sa

HEAD = "0001"  # the newest step of migrations/versions
VERSION_TABLE = "libremoe_version"

_SEQ = sa.BigInteger().with_variant(sa.Integer, "sqlite")  # SQLite numbers rows by INTEGER PRIMARY KEY only

metadata = sa.MetaData()
conversations = sa.Table(
    "conversations", metadata,
    sa.Column("seq", _SEQ, sa.Identity(), primary_key=True),
    sa.Column("id", sa.String(32), nullable=False, unique=True),
    sa.Column("title", sa.Text, nullable=False),
    sa.Column("persona", sa.Text, nullable=False),
    sa.Column("language", sa.Text, nullable=False),
    sa.Column("created", sa.Double, nullable=False),
    sa.Column("updated", sa.Double, nullable=False),
    sa.Column("leaf_id", sa.String(32)),
    sa.Index("conversations_by_update", "updated", "seq"),
)
turns = sa.Table(
    "turns", metadata,
    sa.Column("seq", _SEQ, sa.Identity(), primary_key=True),
    sa.Column("id", sa.String(32), nullable=False, unique=True),
    sa.Column("conversation_id", sa.String(32), sa.ForeignKey("conversations.id"), nullable=False),
    sa.Column("parent_id", sa.String(32)),
    sa.Column("role", sa.String(16), nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("created", sa.Double, nullable=False),
    sa.Column("parts", sa.Text, nullable=False),
    sa.Column("details", sa.Text, nullable=False),
    sa.UniqueConstraint("conversation_id", "id", name="turns_of_a_conversation"),
    # a parent is a turn of the same conversation
    sa.ForeignKeyConstraint(["conversation_id", "parent_id"], ["turns.conversation_id", "turns.id"],
                            name="turns_parent"),
    sa.Index("turns_by_parent", "conversation_id", "parent_id"),
)
search = sa.table("search", sa.column("rowid", sa.BigInteger), sa.column("words"))

MAX_WORD_CHARS = 64
MAX_INDEX_BYTES = 500_000  # of one text: a tsvector holds less than 1 MiB
MAX_QUERY_WORDS = 20

_ASCII_WORD = re.compile(r"[a-z0-9]+")
# Written without spaces between words: each character is a word of its own. Kana, Han with its extensions.
_NO_SPACES = re.compile("([\u3041-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff])")
_ANY_WORD = re.compile(r"[^\W_]+")


def words(text: str) -> list[str]:
    """The words of a text as they are indexed: small letters without accents, letters and digits only, in their order.

    The accents are those of Latin, Greek and Cyrillic (U+0300 to U+036F); vowel signs of other scripts part words.
    """
    if text.isascii():
        found = _ASCII_WORD.findall(text.lower())
    else:
        folded = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", text).casefold())
        plain = re.sub("[\u0300-\u036f]+", "", folded)
        found = _ANY_WORD.findall(_NO_SPACES.sub(r" \1 ", plain))
    return [word[:MAX_WORD_CHARS] for word in found]


def index_text(text: str) -> str:
    """What the index holds of a text: its words, once each, a space between them, at most MAX_INDEX_BYTES."""
    kept: list[str] = []
    size = 0
    for word in dict.fromkeys(words(text)):
        size += len(word.encode("utf-8", "replace")) + 4
        if size > MAX_INDEX_BYTES:
            break
        kept.append(word)
    return " ".join(kept)


def query_words(query: str) -> list[str]:
    """The words that a search asks for: each must be the beginning of a word of what is found."""
    return list(dict.fromkeys(words(query)))[:MAX_QUERY_WORDS]


def snippet(text: str, wanted: list[str], around: int = 80) -> str:
    """The text around the first word that begins with one of wanted, on one line, cut off with …"""
    at = 0
    for match in re.finditer(r"\S+", text):
        if any(word.startswith(tuple(wanted)) for word in words(match.group())):
            at = match.start()
            break
    begin, end = max(0, at - around), at + 2 * around
    cut = " ".join(text[begin:end].split())
    return ("…" if begin else "") + cut + ("…" if end < len(text) else "")
