"""What the tests of conversations share: a plain twin of the store in memory, and random operations on both."""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace
from pathlib import Path

from libremoe.chat.conversation import Conversation, NotFound, Turn, path_to
from libremoe.chat.message import Part, Text, ToolCall, ToolResult
from libremoe.chat.schema import query_words, words
from libremoe.chat.store import Store

VOCABULARY = ["tide", "moon", "éclair", "Éclairs", "Ωmega", "ночь", "夜の", "naïve", "can't", "x" * 90, "12e5", "a/b",
              "<b>"]
AWKWARD = ["\x00", "\ud800", "'", '"', "\\", "%", "\u202e", "\U0001f319", "\r\n", "*", "NEAR(", "' OR 1=1 --"]


def some_text(rnd: random.Random) -> str:
    return " ".join(rnd.choices(VOCABULARY, k=rnd.randrange(12))) + "".join(rnd.choices(AWKWARD, k=rnd.randrange(3)))


def some_parts(rnd: random.Random) -> tuple[Part, ...]:
    kinds = (lambda: Text(some_text(rnd)), lambda: ToolCall("c1", "clock", some_text(rnd)),
             lambda: ToolResult("c1", some_text(rnd)))
    return tuple(rnd.choices(kinds, weights=(8, 1, 1))[0]() for _ in range(rnd.randrange(1, 4)))


@dataclass
class Twin:
    """The store as one would write it without a disk. order: ids, newest updated last."""

    known: dict[str, Conversation] = field(default_factory=dict)
    trees: dict[str, list[Turn]] = field(default_factory=dict)
    order: list[str] = field(default_factory=list)
    added: list[str] = field(default_factory=list)

    def touch(self, conversation_id: str) -> None:
        if conversation_id in self.order:
            self.order.remove(conversation_id)
        self.order.append(conversation_id)

    def search(self, query: str) -> list[tuple[str, str | None]]:
        wanted = query_words(query)

        def matches(text: str) -> bool:
            has = words(text)
            return bool(wanted) and all(any(word.startswith(w) for word in has) for w in wanted)

        titles = [(i, None) for i in reversed(self.order) if matches(self.known[i].title)]
        every = [turn for tree in self.trees.values() for turn in tree]
        texts = [turn for turn in every if turn.state != "writing" and matches(turn.text)]
        texts.sort(key=lambda turn: self.added.index(turn.id), reverse=True)
        return titles + [(turn.conversation_id, turn.id) for turn in texts]


def one_line(title: str) -> str:
    return " ".join("".join(c if c.isprintable() else " " for c in title).split())[:300]


def act(store: Store, twin: Twin, rnd: random.Random) -> None:
    """One random operation on both."""
    ids = list(twin.known)
    kind = rnd.choices(["create", "add", "update", "rename", "persona", "select", "delete", "missing", "delete_all"],
                       weights=(3, 12, 6, 2, 1, 2, 1, 1, 0.1))[0]
    if kind == "create" or not ids:
        title = some_text(rnd)
        made = store.create(title, persona="fun", language="fr")
        assert (made.title, made.persona, made.language, made.leaf_id) == (one_line(title), "fun", "fr", None)
        twin.known[made.id], twin.trees[made.id] = made, []
        twin.touch(made.id)
        return
    its_id = rnd.choice(ids)
    tree, known = twin.trees[its_id], twin.known[its_id]
    if kind == "add":
        parent = rnd.choice([None, known.leaf_id, *(turn.id for turn in tree)])
        parts, state = some_parts(rnd), rnd.choice(["writing", "done"])
        details = {"persona": "fun", "stats": {"tokens": rnd.randrange(99)}, "error": some_text(rnd)}
        turn = store.add(its_id, parent, rnd.choice(["user", "assistant", "tool", "system"]), parts, state, details)
        assert (turn.parent_id, turn.parts, turn.state, turn.details) == (parent, parts, state, details)
        tree.append(turn)
        twin.added.append(turn.id)
        twin.known[its_id] = replace(known, leaf_id=turn.id)
        twin.touch(its_id)
    elif kind == "update" and tree:
        at = rnd.randrange(len(tree))
        changes = {"parts": some_parts(rnd), "state": rnd.choice(["done", "stopped", "failed"]),
                   "details": {"a": [1, None]}}
        changes = {name: changes[name] for name in rnd.sample(list(changes), rnd.randrange(4))}
        tree[at] = replace(tree[at], **changes)
        assert store.update(tree[at].id, **changes) == tree[at]
        twin.touch(its_id)
    elif kind == "rename":
        title = some_text(rnd)
        twin.known[its_id] = replace(known, title=one_line(title))
        store.rename(its_id, title)
    elif kind == "persona":
        twin.known[its_id] = replace(known, persona="coder")
        store.set_persona(its_id, "coder")
    elif kind == "select":
        leaf = rnd.choice([None, *(turn.id for turn in tree)])
        twin.known[its_id] = replace(known, leaf_id=leaf)
        store.select(its_id, leaf)
    elif kind == "missing":
        refused(store, rnd, its_id, twin)
    elif kind in ("delete", "delete_all"):
        if kind == "delete":
            store.delete(its_id)
        else:
            store.delete_all()
        for gone in [its_id] if kind == "delete" else ids:
            del twin.known[gone], twin.trees[gone]
            twin.order.remove(gone)


def refused(store: Store, rnd: random.Random, its_id: str, twin: Twin) -> None:
    """What is not there is said not to be there, and changes nothing."""
    stranger = rnd.choice(["0" * 32, "nonsense", "\x00", "' OR 1=1 --", ""])
    other = next((turn.id for i, tree in twin.trees.items() if i != its_id for turn in tree), stranger)
    tries = [lambda: store.conversation(stranger), lambda: store.turns(stranger), lambda: store.delete(stranger),
             lambda: store.rename(stranger, "x"), lambda: store.update(stranger, state="done"),
             lambda: store.add(stranger, None, "user", ()), lambda: store.add(its_id, other, "user", ()),
             lambda: store.select(its_id, other), lambda: store.path(its_id, other)]
    try:
        rnd.choice(tries)()
    except NotFound:
        return
    raise AssertionError("a stranger's id was taken")


def compare(store: Store, twin: Twin, rnd: random.Random) -> None:
    """All that the store can tell is what the twin tells."""
    listed = store.conversations(limit=10_000)
    assert [c.id for c in listed] == twin.order[::-1]
    assert [c.updated for c in listed] == sorted((c.updated for c in listed), reverse=True)
    for c in listed:
        assert replace(c, updated=0) == replace(twin.known[c.id], updated=0) and c.updated >= twin.known[c.id].updated
        assert store.conversation(c.id) == c
        assert store.turns(c.id) == twin.trees[c.id]
        assert store.path(c.id) == path_to(twin.trees[c.id], c.leaf_id)
    for query in [rnd.choice(VOCABULARY), "ecl", "夜", "ti mo", some_text(rnd), "", "x" * 70]:
        hits = store.search(query, limit=10_000)
        assert [(hit.conversation_id, hit.turn_id) for hit in hits] == twin.search(query), query
        assert all(hit.title == twin.known[hit.conversation_id].title for hit in hits)
    some = twin.search("m")
    assert [(h.conversation_id, h.turn_id) for h in store.search("m", limit=3)] == some[:3]


def bytes_in(folder: Path) -> bytes:
    """All bytes of all files below folder, names too."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return b"\n".join(str(path).encode() + path.read_bytes() for path in files)
