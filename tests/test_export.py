"""Conversations as files: what goes out comes back, what comes from elsewhere is read, hostile files are refused."""

from __future__ import annotations

import io
import json
import random
import re
import struct
import subprocess
import sys
import zipfile
from html.parser import HTMLParser
from typing import Any

import pytest
from conversations import Twin, act, some_text

from libremoe.chat.conversation import Conversation, Turn, path_to
from libremoe.chat.export import all_to_json, to_html, to_json, to_markdown
from libremoe.chat.importing import read_export
from libremoe.chat.message import Text, ToolCall, ToolResult
from libremoe.chat.store import Store, open_store
from libremoe.errors import LibremoeError


def shape(store: Store, conversation: Conversation) -> Any:
    """All of a conversation but its ids."""
    turns = store.turns(conversation.id)
    number: dict[str | None, int] = {turn.id: i for i, turn in enumerate(turns)}
    return ([(number.get(t.parent_id), t.role, t.parts, t.state, t.created, t.details) for t in turns],
            number.get(conversation.leaf_id),
            (conversation.title, conversation.persona, conversation.language, conversation.created,
             conversation.updated))


@pytest.mark.parametrize("seed", range(4))
def test_json_comes_back_whole(seed: int) -> None:
    rnd, twin = random.Random(seed), Twin()
    with open_store(":memory:") as one, open_store(":memory:") as other:
        for _ in range(120):
            act(one, twin, rnd)
        for conversation in one.conversations():
            for turn in one.turns(conversation.id):
                one.update(turn.id, state="done")  # what is being written arrives as stopped
        kept = one.conversations()
        data = all_to_json((c, one.turns(c.id)) for c in kept).encode()
        assert all(to_html(c, one.turns(c.id)).encode() and to_markdown(c, one.turns(c.id)).encode() for c in kept)
        arrived = [other.insert(*found) for found in read_export(data)]
        assert [shape(other, c) for c in arrived] == [shape(one, c) for c in kept]
        assert not {c.id for c in arrived} & {c.id for c in kept}
        assert other.search("tide") == [] or one.search("tide")
        assert len(other.search("m", 9999)) == len(one.search("m", 9999))


def node(its_id: str, parent: str | None, role: str, *pieces: Any, **more: Any) -> dict[str, Any]:
    content = {"content_type": "text", "parts": list(pieces)} | more.pop("content", {})
    return {"id": its_id, "parent": parent, "children": [], "message": {
        "id": its_id, "author": {"role": role}, "create_time": 1700000000.5, "content": content, "recipient": "all",
        "metadata": {"model_slug": "gpt-x"}, **more}}


CHATGPT = [{
    "title": "Tides", "create_time": 1700000000.0, "update_time": 1700000100.0, "current_node": "e", "mapping": {
        "root": {"id": "root", "message": None, "parent": None, "children": ["s"]},
        "s": node("s", "root", "system", "hidden", metadata={"is_visually_hidden_from_conversation": True}),
        "a": node("a", "s", "user", "Why?", {"content_type": "image_asset_pointer", "asset_pointer": "file://x"}),
        "t": node("t", "a", "assistant", content={"content_type": "thoughts", "thoughts": [{"content": "hm"}]}),
        "b": node("b", "t", "assistant", "The Moon\ue200cite\ue202turn0search1\ue201."),
        "c": node("c", "a", "assistant", content={"content_type": "code", "text": "search('x')", "parts": None},
                  recipient="web"),
        "d": node("d", "c", "tool", content={"content_type": "execution_output", "text": "found", "parts": None}),
        "e": node("e", "d", "assistant", ""),
    }}]


def test_chatgpt() -> None:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("chat.html", "<html>")
        file.writestr("conversations.json", json.dumps(CHATGPT))
    for data in (json.dumps(CHATGPT).encode(), packed.getvalue()):
        [(conversation, turns)] = read_export(data)
        assert (conversation.title, conversation.created, conversation.updated) == ("Tides", 1.7e9, 1700000100)
        assert [(t.id, t.parent_id, t.role, t.parts) for t in turns] == [
            ("a", None, "user", (Text("Why?\n[image_asset_pointer]"),)),
            ("b", "a", "assistant", (Text("The Moon."),)),
            ("c", "a", "assistant", (ToolCall("c", "web", "search('x')"),)),
            ("d", "c", "tool", (ToolResult("c", "found"),))]
        assert conversation.leaf_id == "d" and turns[1].details == {"model": "gpt-x"}
        assert turns[0].created == 1700000000.5
        with open_store(":memory:") as store:
            kept = store.insert(conversation, turns)
            assert [t.role for t in store.path(kept.id)] == ["user", "assistant", "tool"]


def test_open_webui() -> None:
    export = [{"id": "x", "title": "Marées", "created_at": 1700000000, "updated_at": 1700000009, "chat": {
        "models": ["m"], "history": {"currentId": "2", "messages": {
            "1": {"id": "1", "parentId": None, "role": "user", "content": "Pourquoi ?", "timestamp": 1700000001},
            "2": {"id": "2", "parentId": "1", "role": "assistant", "content": "La Lune.", "model": "m",
                  "timestamp": 1700000002},
            "3": {"id": "3", "parentId": "1", "role": "assistant", "content": [{"type": "text", "text": "Elle."}]}}}}}]
    [(conversation, turns)] = read_export(json.dumps(export).encode())
    assert (conversation.title, conversation.leaf_id, conversation.updated) == ("Marées", "2", 1700000009)
    assert [(t.id, t.parent_id, t.text, t.details.get("model")) for t in turns] == [
        ("1", None, "Pourquoi ?", None), ("2", "1", "La Lune.", "m"), ("3", "1", "Elle.", None)]


def zipped(name: str, content: bytes) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr(name, content)
    return packed.getvalue()


def ours(**turn: Any) -> bytes:
    first = {"id": "a", "parent_id": None, "role": "user", "parts": [{"type": "text", "text": "x"}], "created": 1}
    conversation = {"title": "t", "turns": [first | turn]}
    return json.dumps({"format": "libremoe conversations 1", "conversations": [conversation]}).encode()


RING = json.dumps([{"mapping": {"a": node("a", "b", "user", "x"), "b": node("b", "a", "user", "y")}}]).encode()
DEEP: Any = []
for _ in range(60):
    DEEP = [DEEP]
HOSTILE = {
    "nothing": b"", "text": b"hello", "binary": b"\xff\xfe\x00", "a number": b"1", "a list of numbers": b"[1]",
    "deep": b"[" * 100_000, "deep objects": b'{"a":' * 100_000, "many values": b"[" + b"[]," * 5_000_000 + b"1]",
    "a long number": b'[{"mapping": {}, "create_time": ' + b"9" * 5000 + b"}]",
    "NaN": ours(details={"a": float("nan")}),
    "a number without end": ours().replace(b'"created": 1', b'"created": 1e999'),
    "a ring": RING, "a ring of one": json.dumps([{"mapping": {"a": node("a", "a", "user", "x")}}]).encode(),
    "a ring of ours": ours(parent_id="a"), "a stranger for a parent": ours(parent_id="z"), "a role": ours(role="root"),
    "a state": ours(state="?"), "parts of a kind": ours(parts=[{"type": "file"}]), "a part's text": ours(
        parts=[{"type": "text", "text": 1}]), "no parts": ours(parts=None), "an id": ours(id=1),
    "details": ours(details=[]), "deep details": ours(details={"a": DEEP}),
    "a later format": ours().replace(b"conversations 1", b"conversations 2"),
    "a zip with nothing": zipped("other.json", b"[]"), "a zip cut short": zipped("conversations.json", b"[]")[:-10],
    "a zip bomb": zipped("conversations.json", b" " * (129 << 20)),
    "a zip with a huge directory": b"PK\x05\x06" + struct.pack("<HHHHIIH", 0, 0, 1, 1, 2**31, 0, 0),
    "a zip that points outside": zipped("conversations.json", b"[]").replace(b"PK\x03\x04", b"PK\x03\x05", 1),
    "a zip of noise": b"PK" + bytes(range(256)) * 40,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused_in_a_sentence(name: str) -> None:
    with pytest.raises(LibremoeError) as refused:
        read_export(HOSTILE[name])
    assert len(str(refused.value)) < 400


def test_a_zip_bomb_takes_little_memory() -> None:
    """The child may not have the memory that the bomb would unpack to."""
    code = ("import sys, resource\n"
            "from libremoe.chat.importing import read_export\nfrom libremoe.errors import LibremoeError\n"
            "used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
            "resource.setrlimit(resource.RLIMIT_AS, (used + (400 << 20),) * 2)\n"
            "try:\n read_export(sys.stdin.buffer.read())\nexcept LibremoeError as error: print(error)")
    block = b" " * (4 << 20)
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file, \
            file.open("conversations.json", "w") as member:
        for _ in range(160):  # 640 MiB
            member.write(block)
    bomb = packed.getvalue()
    done = subprocess.run([sys.executable, "-c", code], input=bomb, capture_output=True)
    assert b"unpacks to more than" in done.stdout, done.stderr


def test_noise_is_refused_or_read_and_nothing_else() -> None:
    """Files with a few bytes or values changed."""
    rnd = random.Random(5)
    whole = [json.dumps(CHATGPT).encode(), ours(), zipped("conversations.json", json.dumps(CHATGPT).encode())]
    store = open_store(":memory:")
    for _ in range(600):
        data = bytearray(rnd.choice(whole))
        for _ in range(rnd.randrange(1, 4)):
            if rnd.random() < 0.5:
                data[rnd.randrange(len(data))] = rnd.randrange(256)
            else:
                at = rnd.randrange(len(data))
                data[at:at + rnd.randrange(8)] = rnd.choice([b"null", b"[]", b"{}", b"-1", b'"', b"1e99"])
        try:
            for conversation, turns in read_export(bytes(data)):
                store.insert(conversation, turns)
        except LibremoeError:
            pass
    store.close()


class Page(HTMLParser):
    """What a page holds: tags, attributes that could act, its visible text."""

    def __init__(self, page: str):
        super().__init__()
        self.tags: set[str] = set()
        self.acting: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.acting += [(name, value) for name, value in attributes if name.startswith("on") or name in ("src", "href")]

    def handle_data(self, data: str) -> None:
        self.text += data


EVIL = ["<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "[x](javascript:alert(1))",
        "</style></title><script>", '" onmouseover="alert(1)', "![x](http://far/x.png)", "<iframe src=http://far>",
        "\u202eevil"]


@pytest.mark.parametrize("evil", EVIL)
def test_nothing_in_a_page_acts(evil: str) -> None:
    source = {"number": 1, "title": evil, "url": "javascript:alert(1)", "fetched": 1.7e9}
    other = {"number": 2, "title": "ok", "url": "https://a.example/" + evil}
    details = {"sources": [source, other, 3], "error": evil, "model": evil, "persona": evil,
               "sentences": [{"start": 0, "end": 3, "verdict": evil}, 1, {"end": 2}]}
    turns = [Turn("a", "c", None, "user", (Text(evil),)),
             Turn("b", "c", "a", "assistant", (Text(evil + " [1]"), ToolCall("i", evil, evil)), "done", 1, details),
             Turn("d", "c", "a", "assistant", (ToolResult("i", evil), Text(evil)), "failed", 1.7e9, details)]
    page = to_html(Conversation("c", evil, leaf_id="b"), turns)
    found = Page(page)
    assert found.tags <= {"html", "head", "meta", "title", "style", "body", "main", "h1", "h2", "p", "section", "div",
                          "a", "pre", "code", "ol", "li", "span", "br"}
    assert all(name == "href" and re.match(r"https?://|#|mailto:", str(value)) for name, value in found.acting)
    assert "\u202e" not in page and "default-src 'none'" in page


def test_exports_are_complete() -> None:
    """Each word of each version of each turn stands in each export."""
    rnd = random.Random(3)
    turns = [Turn("0", "c", None, "user", (Text("word0"),))]
    for i in range(1, 20):
        turns.append(Turn(str(i), "c", rnd.choice(turns).id, "assistant", (Text(f"word{i} {some_text(rnd)}"),)))
    conversation = Conversation("c", "Tides", language="fr", leaf_id="19")
    for export in (to_json, to_markdown, to_html):
        made = export(conversation, turns)
        assert all(re.search(rf"word{i}\b", made) for i in range(20)), export
    markdown = to_markdown(conversation, turns)
    path = [turn.id for turn in path_to(turns, "19")]
    assert [re.search(rf"word{i}\b", markdown).start() for i in path] == sorted(  # type: ignore[union-attr]
        re.search(rf"word{i}\b", markdown).start() for i in path)  # type: ignore[union-attr]


def test_an_open_fence_swallows_nothing() -> None:
    turns = [Turn("a", "c", None, "user", (Text("```python\nx = 1"),)),
             Turn("b", "c", "a", "assistant", (Text("~~~~\n~~~\nyes"), ToolCall("i", "n", "a ```` b"),))]
    made = to_markdown(Conversation("c", "t", leaf_id="b"), turns)
    assert "```python\nx = 1\n```\n\n## 2." in made and "yes\n~~~~\n\n" in made and "`````\na ```` b\n`````" in made
