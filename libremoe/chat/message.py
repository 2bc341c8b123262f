"""What a conversation is made of: Message and its parts. Values only: they know nothing of models, stores or
servers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

Role = Literal["system", "user", "assistant", "tool"]


@dataclass(frozen=True)
class Text:
    """Plain text. Whoever wrote it, it is data: control pieces spelled in it stay plain text."""

    text: str


@dataclass(frozen=True)
class ToolCall:
    """The model asks for a tool. arguments: JSON text, as the model wrote it. id: made by us, echoed by the client."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True)
class ToolResult:
    """What a tool answered to the call with this id."""

    call_id: str
    text: str


Part = Text | ToolCall | ToolResult


@dataclass(frozen=True)
class Message:
    """One turn of one speaker."""

    role: Role
    parts: tuple[Part, ...]

    @property
    def text(self) -> str:
        """All text of the message, tool results included, one paragraph each."""
        return "\n".join(p.text for p in self.parts if not isinstance(p, ToolCall))

    @property
    def tool_calls(self) -> tuple[ToolCall, ...]:
        return tuple(p for p in self.parts if isinstance(p, ToolCall))


@dataclass(frozen=True)
class Tool:
    """A function that the model may ask for. parameters: a JSON schema of its arguments, an object."""

    name: str
    description: str = ""
    parameters: dict[str, Any] = field(default_factory=lambda: {"type": "object", "properties": {}})


@dataclass(frozen=True)
class ToolChoice:
    """none: no call; auto: as the model likes; required: some call; named: this one."""

    mode: Literal["none", "auto", "required", "named"] = "auto"
    name: str | None = None
    parallel: bool = True  # may one answer hold several calls?


def said(role: Role, text: str) -> Message:
    """A message of one text."""
    return Message(role, (Text(text),))
