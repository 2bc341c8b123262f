"""The conversations of a person, kept: written, found again, erased. Values in, values out; databases.py keeps them.

    with open_store("chat.db") as store:
        conversation = store.create(title="Tides")
        turn = store.add(conversation.id, None, "user", (Text("Why are there tides?"),))

What add, update, create, rename or select returned from is on disk. What delete returned from is on no disk: not in
the tables, not in the index, not in the write-ahead log (on PostgreSQL as far as docs/chat.md says). Methods may be
called from any thread and block it until the disk has answered.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from types import TracebackType
from typing import Any, get_args

import sqlalchemy as sa
from sqlalchemy import exc

from libremoe.chat.conversation import (
    STATES,
    Conversation,
    Hit,
    NotFound,
    State,
    Turn,
    new_id,
    part_as_dict,
    part_of,
    path_to,
)
from libremoe.chat.databases import Database, NotSaved, PostgresServer, open_database
from libremoe.chat.message import Message, Part, Role
from libremoe.chat.schema import conversations, index_text, query_words, search, snippet, turns
from libremoe.errors import LibremoeError

__all__ = ["NotFound", "NotSaved", "Store", "open_store"]

_ID = re.compile(r"[0-9a-f]{32}")
MAX_TITLE_CHARS = 300
_CONVERSATION = [column for column in conversations.c if column.name != "seq"]  # as Conversation's fields
_TURN = [turns.c[name] for name in ("id", "conversation_id", "parent_id", "role", "parts", "state", "created",
                                    "details")]


def open_store(where: str | Path) -> Store:
    """where: a path, :memory:, sqlite:///PATH or postgresql://USER:PASSWORD@HOST/NAME. Makes what is missing.

    Raises LibremoeError where it cannot be opened, is open in another process (SQLite), or is of a newer libremoe."""
    return Store(open_database(where, first=_stop_writing))


class Store:
    """All methods raise NotFound for ids that are not there, NotSaved where the disk or the server refuses."""

    def __init__(self, database: Database):
        self._database = database
        self._clock_lock = threading.Lock()
        self._last = 0.0

    def __enter__(self) -> Store:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self._database.close()

    # --- conversations ---

    def create(self, title: str = "", persona: str = "regular", language: str = "en") -> Conversation:
        now = self._now()
        return self.insert(Conversation(new_id(), title, persona, language, now, now), [])

    def insert(self, conversation: Conversation, its_turns: Sequence[Turn]) -> Conversation:
        """A whole conversation at once, as an import brings it: all of it or nothing. It and its turns get new ids.

        Raises LibremoeError where turns form no tree. Times are kept where there are any. Turns lie in the order given,
        parents first.
        """
        now, ordered = self._now(), _parents_first(its_turns)
        new = {turn.id: new_id() for turn in ordered}
        if conversation.leaf_id is not None and conversation.leaf_id not in new:
            raise LibremoeError(f"conversation {conversation.title!r}: its selected turn is not among its turns")
        kept = Conversation(new_id(), _one_line(conversation.title), _one_line(conversation.persona),
                            _one_line(conversation.language), float(conversation.created or now),
                            float(conversation.updated or now),
                            new[conversation.leaf_id] if conversation.leaf_id else None)
        rows = [_row(replace(turn, id=new[turn.id], conversation_id=kept.id, created=float(turn.created),
                             parent_id=new[turn.parent_id] if turn.parent_id else None)) for turn in ordered]

        def act(connection: sa.Connection) -> None:
            _index(connection, -_insert(connection, conversations, asdict(kept)), kept.title)
            for turn, row in zip(ordered, rows, strict=True):
                _index(connection, _insert(connection, turns, row), turn.text)

        self._database.write(act)
        return kept

    def conversations(self, limit: int = 100, before: float | None = None) -> list[Conversation]:
        """Newest updated first. before: updated of the last one seen, for the next page. A page ends between different
        times, so it can be longer than limit where many have the same."""
        query = sa.select(*_CONVERSATION).order_by(conversations.c.updated.desc(), conversations.c.seq.desc())
        if before is not None:
            query = query.where(conversations.c.updated < before)

        def act(connection: sa.Connection) -> list[Conversation]:
            page = [Conversation(*row) for row in connection.execute(query.limit(limit))]
            if len(page) == limit and page:
                same = query.where(conversations.c.updated == page[-1].updated)
                seen = {c.id for c in page}
                page += [c for row in connection.execute(same) if (c := Conversation(*row)).id not in seen]
            return page

        return self._database.read(act)

    def conversation(self, conversation_id: str) -> Conversation:
        return self._database.read(lambda connection: _conversation(connection, conversation_id))

    def rename(self, conversation_id: str, title: str) -> Conversation:
        """title: kept as one line of at most MAX_TITLE_CHARS."""
        return self._change(conversation_id, title=_one_line(title))

    def set_persona(self, conversation_id: str, persona: str) -> Conversation:
        return self._change(conversation_id, persona=_one_line(persona))

    def select(self, conversation_id: str, leaf_id: str | None) -> Conversation:
        """Show the path that ends at this turn. None: the conversation before its first turn."""
        return self._change(conversation_id, leaf_id=leaf_id)

    def _change(self, conversation_id: str, **values: str | None) -> Conversation:
        def act(connection: sa.Connection) -> Conversation:
            changed = replace(_conversation(connection, conversation_id), **values)  # type: ignore[arg-type]
            if changed.leaf_id is not None and _turn(connection, changed.leaf_id).conversation_id != conversation_id:
                raise NotFound(f"turn {changed.leaf_id!r}: not in conversation {conversation_id!r}")
            its_id = conversations.c.id == conversation_id
            connection.execute(sa.update(conversations).where(its_id).values(**values))
            if "title" in values:
                seq = connection.execute(sa.select(conversations.c.seq).where(its_id)).scalar_one()
                _index(connection, -seq, changed.title, anew=True)
            return changed

        return self._database.write(act)

    # --- turns ---

    def turns(self, conversation_id: str) -> list[Turn]:
        """The whole tree, in the order in which turns were added."""
        return self._database.read(lambda connection: _tree(connection, conversation_id))

    def path(self, conversation_id: str, leaf_id: str | None = None) -> list[Turn]:
        """From the root to leaf_id; by default to the selected turn."""
        def act(connection: sa.Connection) -> list[Turn]:
            selected = _conversation(connection, conversation_id).leaf_id
            return path_to(_tree(connection, conversation_id), selected if leaf_id is None else leaf_id)

        return self._database.read(act)

    def turn(self, turn_id: str) -> Turn:
        return self._database.read(lambda connection: _turn(connection, turn_id))

    def add(self, conversation_id: str, parent_id: str | None, role: Role, parts: Sequence[Part], state: State = "done",
            details: Mapping[str, Any] | None = None) -> Turn:
        """A turn that follows parent_id (None: a root), and that is selected from now on. On disk when it returns."""
        now = self._now()
        turn = Turn(new_id(), conversation_id, parent_id, role, tuple(parts), state, now, dict(details or {}))
        row = _row(turn)

        def act(connection: sa.Connection) -> None:
            if not _is_id(conversation_id) or not (parent_id is None or _is_id(parent_id)):
                raise NotFound(f"conversation {conversation_id!r} with a turn {parent_id!r}: not found")
            try:
                seq = _insert(connection, turns, row)
            except exc.IntegrityError:
                raise NotFound(f"conversation {conversation_id!r} with a turn {parent_id!r}: not found") from None
            if state != "writing":
                _index(connection, seq, turn.text)
            connection.execute(_TOUCH, {"its_id": conversation_id, "leaf_id": turn.id, "updated": now})

        self._database.write(act)
        return turn

    def update(self, turn_id: str, parts: Sequence[Part] | None = None, state: State | None = None,
               details: Mapping[str, Any] | None = None) -> Turn:
        """Change what is not None; so an answer is saved as it grows. Searches find it once it is not "writing"."""
        now = self._now()

        def act(connection: sa.Connection) -> Turn:
            before = _turn(connection, turn_id)
            after = replace(before, parts=before.parts if parts is None else tuple(parts), state=state or before.state,
                            details=before.details if details is None else dict(details))
            row = _row(after)
            values = {name: row[name] for name in ("parts", "state", "details")}
            connection.execute(_UPDATE_TURN, {"its_id": turn_id, **values})
            connection.execute(_TOUCH_TIME, {"its_id": after.conversation_id, "updated": now})
            if after.state != "writing" and (before.state == "writing" or after.parts != before.parts):
                seq = connection.execute(sa.select(turns.c.seq).where(turns.c.id == turn_id)).scalar_one()
                _index(connection, seq, after.text, anew=True)
            return after

        return self._database.write(act)

    def _now(self) -> float:
        """Unix seconds; never twice the same, so that orders by time are orders."""
        with self._clock_lock:
            self._last = max(time.time(), self._last + 1e-6)
            return self._last

    # --- searching ---

    def search(self, query: str, limit: int = 50) -> list[Hit]:
        """Where all words of query begin words of a title or of a turn: titles first, newest first, then turns."""
        wanted = query_words(query)
        if not wanted:
            return []
        if isinstance(self._database, PostgresServer):
            text = " & ".join(f"'{word}':*" for word in wanted)
            matches = sa.text("search.words @@ CAST(:wanted AS tsquery)").bindparams(wanted=text)
        else:
            matches = sa.text("search MATCH :wanted").bindparams(wanted=" AND ".join(f'"{word}"*' for word in wanted))
        titles = (sa.select(conversations.c.id, conversations.c.title)
                  .join_from(search, conversations, conversations.c.seq == -search.c.rowid).where(matches)
                  .order_by(conversations.c.updated.desc(), conversations.c.seq.desc()).limit(limit))
        texts = (sa.select(*_TURN, conversations.c.title)
                 .join_from(search, turns, turns.c.seq == search.c.rowid)
                 .join(conversations, conversations.c.id == turns.c.conversation_id).where(matches)
                 .order_by(turns.c.seq.desc()).limit(limit))

        def act(connection: sa.Connection) -> list[Hit]:
            hits = [Hit(its_id, title, None, snippet(title, wanted)) for its_id, title in connection.execute(titles)]
            for *row, title in connection.execute(texts.limit(limit - len(hits))):
                turn = _turn_of(row)
                hits.append(Hit(turn.conversation_id, title, turn.id, snippet(turn.text, wanted)))
            return hits

        return self._database.read(act)

    # --- erasing ---

    def delete(self, conversation_id: str) -> None:
        """Erase it: when this returns no byte of it is left in the files. Costs a rewrite of the database."""
        self._delete(conversation_id)

    def delete_all(self) -> None:
        """Erase every conversation."""
        self._delete(None)

    def _delete(self, conversation_id: str | None) -> None:
        of_turns = turns.c.conversation_id == conversation_id if conversation_id is not None else sa.true()
        of_conversation = conversations.c.id == conversation_id if conversation_id is not None else sa.true()

        def act(connection: sa.Connection) -> None:
            if conversation_id is not None:
                _conversation(connection, conversation_id)
            connection.execute(sa.delete(search).where(search.c.rowid.in_(sa.select(turns.c.seq).where(of_turns))))
            connection.execute(sa.delete(search).where(
                search.c.rowid.in_(sa.select(-conversations.c.seq).where(of_conversation))))
            connection.execute(sa.delete(turns).where(of_turns))
            connection.execute(sa.delete(conversations).where(of_conversation))
            self._database.deleted(connection)

        self._database.write(act)
        self._database.erase()


# Statements of the hot path, made once.
_INDEX = {
    "sqlite": sa.insert(search).values(rowid=sa.bindparam("its_rowid"), words=sa.bindparam("its_words")),
    "postgresql": sa.insert(search).values(rowid=sa.bindparam("its_rowid"), words=sa.func.array_to_tsvector(
        sa.func.string_to_array(sa.bindparam("its_words"), " "))),
}
_TOUCH = (sa.update(conversations).where(conversations.c.id == sa.bindparam("its_id"))
          .values(leaf_id=sa.bindparam("leaf_id"), updated=sa.bindparam("updated")))
_TOUCH_TIME = (sa.update(conversations).where(conversations.c.id == sa.bindparam("its_id"))
               .values(updated=sa.bindparam("updated")))
_UPDATE_TURN = (sa.update(turns).where(turns.c.id == sa.bindparam("its_id"))
                .values(parts=sa.bindparam("parts"), state=sa.bindparam("state"), details=sa.bindparam("details")))


def _insert(connection: sa.Connection, table: sa.Table, row: dict[str, Any]) -> int:
    """Returns the row's seq."""
    key = connection.execute(sa.insert(table), row).inserted_primary_key
    return int(key[0]) if key else 0


def _index(connection: sa.Connection, rowid: int, text: str, anew: bool = False) -> None:
    """Let searches find text under rowid. anew: it may be there with another text."""
    if anew:
        connection.execute(sa.delete(search).where(search.c.rowid == rowid))
    its_words = index_text(text)
    if its_words:
        connection.execute(_INDEX[connection.dialect.name], {"its_rowid": rowid, "its_words": its_words})


def _stop_writing(connection: sa.Connection) -> None:
    """Answers that were being written when the last process ended."""
    # One statement, which waits for a transaction of a process that was just killed and looks at its turn again
    stopped = (sa.update(turns).where(turns.c.state == "writing").values(state="stopped")
               .returning(turns.c.seq, turns.c.parts))
    for seq, parts in connection.execute(stopped).all():
        _index(connection, seq, Message("assistant", _parts(parts)).text, anew=True)


def _is_id(value: object) -> bool:
    return isinstance(value, str) and _ID.fullmatch(value) is not None


def _conversation(connection: sa.Connection, conversation_id: str) -> Conversation:
    row = None
    if _is_id(conversation_id):
        row = connection.execute(sa.select(*_CONVERSATION).where(conversations.c.id == conversation_id)).one_or_none()
    if row is None:
        raise NotFound(f"conversation {conversation_id!r}: not found")
    return Conversation(*row)


def _turn(connection: sa.Connection, turn_id: str) -> Turn:
    row = connection.execute(sa.select(*_TURN).where(turns.c.id == turn_id)).one_or_none() if _is_id(turn_id) else None
    if row is None:
        raise NotFound(f"turn {turn_id!r}: not found")
    return _turn_of(row)


def _tree(connection: sa.Connection, conversation_id: str) -> list[Turn]:
    _conversation(connection, conversation_id)
    rows = connection.execute(sa.select(*_TURN).where(turns.c.conversation_id == conversation_id).order_by(turns.c.seq))
    return [_turn_of(row) for row in rows]


def _turn_of(row: Sequence[Any]) -> Turn:
    its_id, conversation_id, parent_id, role, parts, state, created, details = row
    return Turn(its_id, conversation_id, parent_id, role, _parts(parts), state, created, json.loads(details))


def _row(turn: Turn) -> dict[str, Any]:
    if turn.role not in get_args(Role) or turn.state not in STATES:
        raise LibremoeError(f"turn: role {turn.role!r} with state {turn.state!r} is not known")
    return {"id": turn.id, "conversation_id": turn.conversation_id, "parent_id": turn.parent_id, "role": turn.role,
            "state": turn.state, "created": turn.created, "parts": _json([part_as_dict(p) for p in turn.parts]),
            "details": _json(turn.details)}


def _parts(text: str) -> tuple[Part, ...]:
    return tuple(part_of(value) for value in json.loads(text))


def _parents_first(its_turns: Sequence[Turn]) -> list[Turn]:
    """The same turns in the same order, but none before its parent."""
    if len({turn.id for turn in its_turns}) < len(its_turns):
        raise LibremoeError("conversation: two of its turns have the same id")
    ordered: list[Turn] = []
    placed: set[str | None] = {None}
    waiting: dict[str | None, list[Turn]] = {}
    for turn in its_turns:
        if turn.parent_id not in placed:
            waiting.setdefault(turn.parent_id, []).append(turn)
            continue
        stack = [turn]
        while stack:
            ordered.append(stack.pop())
            placed.add(ordered[-1].id)
            stack += waiting.pop(ordered[-1].id, [])[::-1]
    if waiting:
        raise LibremoeError("conversation: its turns form no tree: some follow a turn that is not there")
    return ordered


def _json(value: object) -> str:
    """As text that every database takes: control characters are escaped, and surrogates too where there are any."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    try:
        text.encode()
    except UnicodeEncodeError:
        text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return text


def _one_line(text: str) -> str:
    """A title or a name as it is kept: one line, nothing that cannot be printed, at most MAX_TITLE_CHARS."""
    printable = "".join(char if char.isprintable() else " " for char in text[:4 * MAX_TITLE_CHARS])
    return " ".join(printable.split())[:MAX_TITLE_CHARS]
