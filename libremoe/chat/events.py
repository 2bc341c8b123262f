"""What a turn says while it happens, what a model is asked for, and what an answer consists of: values only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from libremoe.chat.message import Message, Part, Text, Tool, ToolCall, ToolResult


@dataclass(frozen=True)
class TextDelta:
    text: str


@dataclass(frozen=True)
class Searching:
    query: str


@dataclass(frozen=True)
class Sources:
    """Numbered excerpts that the answer is written from, as values of JSON (the fields of live's Excerpt)."""

    sources: tuple[dict[str, Any], ...]


@dataclass(frozen=True)
class CallAsked:
    """The model asks for a tool. approval: "given" (the tool does nothing outside, or was allowed before), "ask" (the
    person decides), "always ask" (the person decides, whatever was allowed before)."""

    call: ToolCall
    approval: str


@dataclass(frozen=True)
class CallDone:
    """A call's result, or what went wrong. reads: whether it is text that others wrote."""

    result: ToolResult
    name: str
    ok: bool
    seconds: float
    reads: bool = False


@dataclass(frozen=True)
class Experts:
    """Which experts worked on the pass that gave token number `token` of this answer: layers[l] are those of layer l.
    text: what the token added, as far as it is certain."""

    token: int
    layers: tuple[tuple[int, ...], ...]
    text: str = ""


@dataclass(frozen=True)
class Started:
    """Before the first word: what is known of the answer already (persona, prompt_sha256, ...)."""

    details: dict[str, Any]


@dataclass(frozen=True)
class Ended:
    """A model's stream ended. finish_reason: stop, length, tool_calls. stats: tokens, first_token_s, tokens_s, ..."""

    finish_reason: str
    stats: dict[str, Any]
    template: str


@dataclass(frozen=True)
class Finished:
    details: dict[str, Any]


Event = TextDelta | Searching | Sources | CallAsked | CallDone | Experts | Started | Finished


@dataclass(frozen=True)
class Request:
    """What a model is asked for. prefix: the beginning of the answer, already written. experts: whether to report them.
    sampling: fields of SamplingParams, by name."""

    messages: list[Message]
    tools: list[Tool] = field(default_factory=list)
    sampling: Mapping[str, Any] = field(default_factory=dict)
    prefix: str = ""
    experts: bool = False


def add_stats(before: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """The figures of two passes of one answer as one: counts and seconds add up, the time of the first word stays."""
    out = dict(more)
    for name in ("tokens", "prompt_tokens", "seconds", "expert_hits", "expert_misses"):
        if name in before and name in more:
            out[name] = before[name] + more[name]
    if "first_token_s" in before:
        out["first_token_s"] = before["first_token_s"]
    decoding = out.get("seconds", 0.0) - out.get("first_token_s", 0.0)
    out["tokens_s"] = (out["tokens"] - 1) / decoding if out.get("tokens", 0) > 1 and decoding > 0 else 0.0
    return out


@dataclass
class Written:
    """Events, folded: what an answer consists of so far, whether it was stopped or not."""

    prefix: str = ""
    parts: list[Part] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.prefix:
            self.parts.append(Text(self.prefix))

    def add(self, event: Event | Ended) -> None:
        if isinstance(event, TextDelta):
            if self.parts and isinstance(self.parts[-1], Text):
                self.parts[-1] = Text(self.parts[-1].text + event.text)
            else:
                self.parts.append(Text(event.text))
        elif isinstance(event, CallAsked):
            self.parts.append(event.call)
        elif isinstance(event, CallDone):
            self.parts.append(event.result)
            if event.reads:
                self.details["read_elsewhere"] = True
        elif isinstance(event, Sources):
            self.details["sources"] = list(event.sources)
        elif isinstance(event, Started | Finished):
            self.details |= event.details

    @property
    def text(self) -> str:
        """What the model said, without calls and results."""
        return "".join(part.text for part in self.parts if isinstance(part, Text))
