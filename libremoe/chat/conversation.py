"""A conversation: a tree of turns. Values only: they know nothing of stores, models or servers.

An edit or a second answer is a sibling of the first, so a conversation is a tree and what is shown is one path of it,
from a root to the selected leaf.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

from libremoe.chat.message import Message, Part, Role, Text, ToolCall, ToolResult
from libremoe.errors import LibremoeError

State = Literal["writing", "done", "stopped", "failed"]
ROLES: tuple[str, ...] = get_args(Role)
STATES: tuple[str, ...] = get_args(State)

_PARTS: dict[str, type[Text] | type[ToolCall] | type[ToolResult]] = {
    "text": Text, "tool_call": ToolCall, "tool_result": ToolResult}
_PART_KINDS = {kind: name for name, kind in _PARTS.items()}
_PART_FIELDS = {"text": ("text",), "tool_call": ("id", "name", "arguments"), "tool_result": ("call_id", "text")}


class NotFound(LibremoeError):
    """There is no conversation, or no turn, with this id. The server makes it a 404."""


@dataclass(frozen=True)
class Conversation:
    """What is known of a conversation beside its turns. created, updated: unix seconds. leaf_id: the selected turn."""

    id: str
    title: str = ""
    persona: str = "regular"
    language: str = "en"
    created: float = 0.0
    updated: float = 0.0
    leaf_id: str | None = None


@dataclass(frozen=True)
class Turn:
    """One node of the tree. parent_id: the turn that it answers; None: a root. created: unix seconds.

    details, of an answer: persona, prompt_sha256, model, template, stats, sources, sentences, error. JSON values only.
    """

    id: str
    conversation_id: str
    parent_id: str | None
    role: Role
    parts: tuple[Part, ...]
    state: State = "done"
    created: float = 0.0
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def message(self) -> Message:
        """What a model reads of it."""
        return Message(self.role, self.parts)

    @property
    def text(self) -> str:
        """All its text, tool results included."""
        return self.message.text


@dataclass(frozen=True)
class Hit:
    """A place that a search found. turn_id None: the title. snippet: plain text around the first word found."""

    conversation_id: str
    title: str
    turn_id: str | None
    snippet: str


def new_id() -> str:
    """An id of ours for a conversation or a turn: 32 hexadecimal digits at random."""
    return uuid.uuid4().hex


def path_to(turns: Iterable[Turn], leaf_id: str | None) -> list[Turn]:
    """The turns from the root to leaf_id; none for None. Raises NotFound where leaf_id is not among turns."""
    by_id = {turn.id: turn for turn in turns}
    path: list[Turn] = []
    while leaf_id is not None:
        turn = by_id.pop(leaf_id, None)  # taken out, so that a ring of parents ends too
        if turn is None:
            raise NotFound(f"turn {leaf_id!r}: not in this conversation")
        path.append(turn)
        leaf_id = turn.parent_id
    return path[::-1]


def part_as_dict(part: Part) -> dict[str, str]:
    """As JSON: {"type": "text" | "tool_call" | "tool_result", ...the part's fields}."""
    return {"type": _PART_KINDS[type(part)], **asdict(part)}


def part_of(value: object) -> Part:
    """The part that part_as_dict made. Raises LibremoeError where it is none."""
    if not isinstance(value, Mapping) or value.get("type") not in _PARTS:
        raise LibremoeError(f"part: must be an object whose type is one of {', '.join(_PARTS)}")
    name = str(value["type"])
    fields = {key: value.get(key) for key in _PART_FIELDS[name]}
    for key, text in fields.items():
        if not isinstance(text, str):
            raise LibremoeError(f"part of type {name}: {key} must be text")
    return _PARTS[name](**fields)  # type: ignore[arg-type]


def turn_as_dict(turn: Turn) -> dict[str, Any]:
    """As JSON, with the names of Turn's fields."""
    return {"id": turn.id, "conversation_id": turn.conversation_id, "parent_id": turn.parent_id, "role": turn.role,
            "parts": [part_as_dict(part) for part in turn.parts], "state": turn.state, "created": turn.created,
            "details": turn.details}


def conversation_as_dict(conversation: Conversation) -> dict[str, Any]:
    """As JSON, with the names of Conversation's fields."""
    return asdict(conversation)


def title_from(parts: Sequence[Part], max_chars: int = 60) -> str:
    """A title for a conversation that begins with these parts: their first words, on one line."""
    words = " ".join(p.text for p in parts if isinstance(p, Text)).split()
    title = ""
    for word in words:
        if len(title) + 1 + len(word) > max_chars:
            return (title or word[:max_chars]) + "…"
        title = f"{title} {word}" if title else word
    return title
