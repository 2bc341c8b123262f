"""Conversations from a file: ChatGPT's export (conversations.json or the whole zip), Open WebUI's, and our own JSON.

The file is data from outside: its size, what it unpacks to and the number of its values are bounded before anything is
built from it, rings of messages are refused, and its ids serve to join its own messages only.

What was read of the formats, for neither is documented by its maker:
  ChatGPT     a list of {title, create_time, update_time, current_node, mapping: {id: {message, parent, children}}};
              message: {author: {role, name}, create_time, recipient, content: {content_type, parts | text}, metadata}
  Open WebUI  a list of {title, created_at, updated_at, chat: {title, models, history: {currentId, messages: {id:
              {parentId, role, content, model, timestamp}}}}}  (github.com/open-webui/open-webui, src/lib/apis/chats)
"""

from __future__ import annotations

import json
import math
import re
import struct
import zlib
from typing import Any, NoReturn

from libremoe.chat.conversation import ROLES, STATES, Conversation, Turn, new_id, part_of
from libremoe.chat.export import FORMAT
from libremoe.chat.message import Part, Role, Text, ToolCall, ToolResult
from libremoe.errors import LibremoeError

MAX_JSON_BYTES = 128 << 20  # of all JSON of a file, unpacked
MAX_VALUES = 4_000_000  # commas and brackets, an upper bound of the values that a parser makes
MAX_DIRECTORY_BYTES = 4 << 20  # of a zip file
MAX_DEPTH = 40  # of the details of a turn
UNSEEN_TYPES = ("thoughts", "reasoning_recap", "user_editable_context", "model_editable_context")  # ChatGPT's

Found = list[tuple[Conversation, list[Turn]]]


def read_export(data: bytes) -> Found:
    """The conversations of a file, each with its turns. Raises LibremoeError where it is none of these or too large."""
    texts = _unzipped(data) if data.startswith(b"PK") else [data]
    found: Found = []
    for text in texts:
        found += _read(_parsed(text))
    return found


def _read(value: Any) -> Found:
    if isinstance(value, dict) and str(value.get("format", "")).startswith("libremoe conversations"):
        if value["format"] != FORMAT:
            _refuse(f"its format {value['format']!r} is not known to this version: upgrade libremoe")
        items = value.get("conversations")
        return [_ours(item, i) for i, item in enumerate(_list(items, "conversations"), 1)]
    found = []
    for i, item in enumerate(value if isinstance(value, list) else [value], 1):
        if isinstance(item, dict) and isinstance(item.get("mapping"), dict):
            found.append(_chatgpt(item, i))
        elif isinstance(item, dict) and isinstance(_open_webui_messages(item), dict):
            found.append(_open_webui(item, i))
        else:
            _refuse(f"its conversation {i} is neither of ChatGPT, Open WebUI nor libremoe: give conversations.json, "
                    "the zip file that ChatGPT sends, Open WebUI's export or a JSON export of libremoe")
    return found


# --- files ---

def _parsed(data: bytes) -> Any:
    if len(data) > MAX_JSON_BYTES:
        _refuse(f"it has more than {MAX_JSON_BYTES >> 20} MiB of JSON: split it")
    n_values = sum(data.count(mark) for mark in (b",", b"[", b"{"))
    if n_values > MAX_VALUES:
        _refuse(f"it has more than {MAX_VALUES:,} values: split it")
    try:
        return json.loads(data, parse_float=_float, parse_constant=_float)
    except RecursionError:
        _refuse("its values are nested too deeply")
    except json.JSONDecodeError as error:
        _refuse(f"it is no JSON at line {error.lineno}, column {error.colno}")
    except ValueError as error:  # not UTF-8, a number of thousands of digits
        _refuse(f"it is no JSON: {str(error)[:120]}")


def _unzipped(data: bytes) -> list[bytes]:
    """The conversations*.json of a zip file (APPNOTE.TXT 6.3.10, sections 4.3.7, 4.3.12, 4.3.16). Only these are
    unpacked, never to the disk, and no further than to the limit."""
    end = data.rfind(b"PK\x05\x06", max(0, len(data) - 65557))
    if end < 0 or len(data) < end + 22:
        _refuse("it is a zip file without an end: it was cut short")
    size, at = struct.unpack_from("<II", data, end + 12)
    if size > MAX_DIRECTORY_BYTES or at + size > end:
        _refuse("it is a zip file with too large a directory: unpack it and give conversations.json")
    texts, left = [], MAX_JSON_BYTES
    stop = at + size
    while at + 46 <= stop and data.startswith(b"PK\x01\x02", at):
        flags, method = struct.unpack_from("<HH", data, at + 8)
        packed, _, n_name, n_extra, n_comment = struct.unpack_from("<IIHHH", data, at + 20)
        local, = struct.unpack_from("<I", data, at + 42)
        name = data[at + 46:at + 46 + n_name].decode("utf-8", "replace")
        at += 46 + n_name + n_extra + n_comment
        if re.fullmatch(r"(.*/)?conversations(-\d+)?\.json", name):
            texts.append(_member(data, name, flags, method, packed, local, left))
            left -= len(texts[-1])
    if not texts:
        _refuse("it is a zip file without conversations.json")
    return texts


def _member(data: bytes, name: str, flags: int, method: int, packed: int, local: int, left: int) -> bytes:
    if flags & 1 or method not in (0, 8):
        _refuse(f"{name} in the zip file is encrypted or packed in a rare way: unpack it and give conversations.json")
    if local + 30 > len(data) or not data.startswith(b"PK\x03\x04", local):
        _refuse(f"{name} in the zip file is damaged")
    n_name, n_extra = struct.unpack_from("<HH", data, local + 26)
    begin = local + 30 + n_name + n_extra
    if begin + packed > len(data):
        _refuse(f"{name} in the zip file is damaged")
    if method == 0:
        text = data[begin:begin + min(packed, left + 1)]
    else:
        try:
            text = zlib.decompressobj(-15).decompress(memoryview(data)[begin:begin + packed], left + 1)
        except zlib.error:
            _refuse(f"{name} in the zip file is damaged")
    if len(text) > left:
        _refuse(f"it unpacks to more than {MAX_JSON_BYTES >> 20} MiB of JSON")
    return text


# --- formats ---

def _ours(item: Any, number: int) -> tuple[Conversation, list[Turn]]:
    where = f"conversation {number}"
    item = _dict(item, where)
    its_id = new_id()
    turns: list[Turn] = []
    for i, value in enumerate(_list(item.get("turns"), f"{where}: turns"), 1):
        at = f"{where}: turn {i}"
        value = _dict(value, at)
        role, state, parent = value.get("role"), value.get("state", "done"), value.get("parent_id")
        if role not in ROLES or state not in STATES:
            _refuse(f"{at}: role {str(role)[:20]!r} with state {str(state)[:20]!r} is not known")
        if not isinstance(value.get("id"), str) or not (parent is None or isinstance(parent, str)):
            _refuse(f"{at}: id and parent_id must be text")
        parts = tuple(part_of(part) for part in _list(value.get("parts"), f"{at}: parts"))
        turns.append(Turn(value["id"], its_id, parent, role, parts, "stopped" if state == "writing" else state,
                          _time(value.get("created")), _details(value.get("details", {}), f"{at}: details")))
    created, updated = _time(item.get("created")), _time(item.get("updated"))
    conversation = Conversation(its_id, _text(item.get("title")), _text(item.get("persona")) or "regular",
                                _text(item.get("language")) or "en", created, updated or created,
                                _leaf(item.get("leaf_id"), turns))
    _check_tree(turns, where)
    return conversation, turns


def _chatgpt(item: dict[str, Any], number: int) -> tuple[Conversation, list[Turn]]:
    where = f"conversation {number}"
    its_id = new_id()
    messages: dict[str, tuple[Role, tuple[Part, ...], float, dict[str, Any]]] = {}
    parents: dict[str, str | None] = {}
    for node_id, node in item["mapping"].items():
        node = _dict(node, f"{where}: message {node_id[:40]!r}")
        parents[node_id] = node["parent"] if isinstance(node.get("parent"), str) else None
        message = node.get("message")
        if isinstance(message, dict) and (made := _chatgpt_message(node_id, message, parents[node_id])) is not None:
            messages[node_id] = made
    kept = _kept_parents(parents, set(messages), where)
    turns = [Turn(node_id, its_id, kept[node_id], role, parts, "done", created, details)
             for node_id, (role, parts, created, details) in messages.items()]
    current = item.get("current_node")
    if isinstance(current, str) and current in kept and current not in messages:
        current = kept[current]
    created, updated = _time(item.get("create_time")), _time(item.get("update_time"))
    return Conversation(its_id, _text(item.get("title")), created=created, updated=updated or created,
                        leaf_id=_leaf(current, turns)), turns


def _chatgpt_message(node_id: str, message: dict[str, Any],
                     parent: str | None) -> tuple[Role, tuple[Part, ...], float, dict[str, Any]] | None:
    """None for what a person did not see: hidden and empty messages, the model's notes to itself."""
    author, content, metadata = (value if isinstance(value := message.get(name), dict) else {}
                                 for name in ("author", "content", "metadata"))
    role = author.get("role")
    if role not in ROLES or metadata.get("is_visually_hidden_from_conversation"):
        return None
    if content.get("content_type") in UNSEEN_TYPES:
        return None
    pieces = content.get("parts") if isinstance(content.get("parts"), list) else [content.get("text")]
    texts = []
    for piece in pieces or []:
        if isinstance(piece, str):
            texts.append(re.sub("\ue200[^\ue200\ue201]*\ue201", "", piece))  # marks of citations, which nothing shows
        elif isinstance(piece, dict):
            texts.append(_text(piece.get("text")) or f"[{_text(piece.get('content_type'))[:60] or 'attachment'}]")
    text = "\n".join(texts)
    if not text.strip():
        return None
    recipient = message.get("recipient")
    part: Part = Text(text)
    if role == "tool":
        part = ToolResult(parent or "", text)
    elif role == "assistant" and isinstance(recipient, str) and recipient != "all":
        part = ToolCall(node_id, recipient, text)
    model = metadata.get("model_slug")
    return role, (part,), _time(message.get("create_time")), {"model": model} if isinstance(model, str) else {}


def _open_webui_messages(item: dict[str, Any]) -> Any:
    chat = item.get("chat", item)
    history = chat.get("history") if isinstance(chat, dict) else None
    return history.get("messages") if isinstance(history, dict) else None


def _open_webui(item: dict[str, Any], number: int) -> tuple[Conversation, list[Turn]]:
    where = f"conversation {number}"
    its_id = new_id()
    chat = item.get("chat", item)
    parents: dict[str, str | None] = {}
    made: dict[str, Turn] = {}
    for key, message in _open_webui_messages(item).items():
        message = _dict(message, f"{where}: message {key[:40]!r}")
        parents[key] = message["parentId"] if isinstance(message.get("parentId"), str) else None
        content = message.get("content")
        if isinstance(content, list):  # as the OpenAI API has it
            content = "\n".join(_text(piece.get("text")) or f"[{_text(piece.get('type'))[:60]}]"
                                for piece in content if isinstance(piece, dict))
        model = message.get("model")
        if message.get("role") in ROLES and _text(content).strip():
            made[key] = Turn(key, its_id, None, message["role"], (Text(_text(content)),), "done",
                             _time(message.get("timestamp")), {"model": model} if isinstance(model, str) else {})
    kept = _kept_parents(parents, set(made), where)
    turns = [Turn(t.id, its_id, kept[t.id], t.role, t.parts, t.state, t.created, t.details) for t in made.values()]
    current = chat["history"].get("currentId")
    if isinstance(current, str) and current in kept and current not in made:
        current = kept[current]
    created = _time(item.get("created_at")) or _time(chat.get("timestamp"))
    updated = _time(item.get("updated_at")) or created
    return Conversation(its_id, _text(item.get("title")) or _text(chat.get("title")), created=created, updated=updated,
                        leaf_id=_leaf(current, turns)), turns


# --- trees ---

def _kept_parents(parents: dict[str, str | None], kept: set[str], where: str) -> dict[str, str | None]:
    """For each node the nearest one above it that is kept. A parent that is not in the file counts as none."""
    above: dict[str | None, str | None] = {None: None}
    for node in parents:
        trail: list[str] = []
        at: str | None = node
        on_trail = set()
        while at not in above:
            if at in on_trail:
                _refuse(f"{where}: its messages follow each other in a ring")
            if at is None or at not in parents:
                above[at] = None
                break
            trail.append(at)
            on_trail.add(at)
            at = parents[at]
        for name in reversed(trail):
            parent = parents[name]
            above[name] = parent if parent in kept else above[parent]
    return {name: above[name] for name in parents}


def _check_tree(turns: list[Turn], where: str) -> None:
    parents = {turn.id: turn.parent_id for turn in turns}
    if len(parents) < len(turns):
        _refuse(f"{where}: two of its turns have the same id")
    if any(parent is not None and parent not in parents for parent in parents.values()):
        _refuse(f"{where}: a turn follows one that is not in the file")
    _kept_parents(parents, set(parents), where)


def _leaf(selected: Any, turns: list[Turn]) -> str | None:
    """The selected turn; the last one where the file names none that is there."""
    if isinstance(selected, str) and any(turn.id == selected for turn in turns):
        return selected
    return turns[-1].id if turns and selected is not None else None


# --- values ---

def _refuse(reason: str) -> NoReturn:
    raise LibremoeError(f"the file to import: {reason}")


def _dict(value: Any, what: str) -> dict[str, Any]:
    return value if isinstance(value, dict) else _refuse(f"{what} must be an object")


def _list(value: Any, what: str) -> list[Any]:
    return value if isinstance(value, list) else _refuse(f"{what} must be a list")


def _details(value: Any, what: str) -> dict[str, Any]:
    """An object that is not so deep that writing it down again would fail."""
    level: list[Any] = [_dict(value, what)]
    for _ in range(MAX_DEPTH):
        level = [inner for outer in level for inner in (outer.values() if isinstance(outer, dict) else outer)
                 if isinstance(inner, dict | list)]
        if not level:
            return _dict(value, what)
    _refuse(f"{what} is nested more than {MAX_DEPTH} deep")


def _float(text: str) -> float:
    """A number of JSON: 1e999, NaN and Infinity are none that could be written down again."""
    return number if math.isfinite(number := float(text)) else _refuse(f"{text[:20]} is no number")


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _time(value: Any) -> float:
    """Unix seconds; of milliseconds too. 0 where it is no time."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e14:
        return 0.0
    return value / 1000 if value > 1e11 else float(value)
