"""One turn of a conversation, as all three chat APIs need it: messages in, a job for the engine, text and calls out."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from typing import Any

from libremoe.chat.message import Message, Text, Tool, ToolCall, ToolChoice
from libremoe.chat.tools import CallParser
from libremoe.engine.sequence import Experts, Logprob
from libremoe.errors import LibremoeError
from libremoe.server.errors import invalid
from libremoe.server.generate import Generation, Job, params_from
from libremoe.server.service import Service


@dataclass
class Asked:
    """A turn as it was asked for, in nobody's dialect. Sampling fields that are None are the engine's defaults."""

    messages: list[Message]
    tools: list[Tool] = field(default_factory=list)
    choice: ToolChoice = field(default_factory=ToolChoice)
    schema: dict[str, Any] | None = None  # of the answer, where it must be JSON
    schema_field: str = "response_format"  # what the API calls it
    max_tokens: int | None = None
    n: int = 1
    stop: tuple[str, ...] = ()
    sampling: dict[str, Any] = field(default_factory=dict)
    prefix: str = ""  # of the answer: it is continued
    experts: bool = False  # whether to report which experts worked


@dataclass
class Turn:
    """A turn that is ready to be queued."""

    job: Job
    template: str
    choice: ToolChoice
    has_tools: bool
    id: str = field(default_factory=lambda: uuid.uuid4().hex[:24])
    created: int = field(default_factory=lambda: int(time.time()))

    def parser(self) -> CallParser | None:
        return CallParser(parallel=self.choice.parallel) if self.has_tools else None


async def prepare(service: Service, asked: Asked) -> Turn:
    """Render, check that it fits, compile the constraint. Raises ApiError 400."""
    check_tools(asked)
    has_tools = bool(asked.tools) and asked.choice.mode != "none"
    try:
        prompt = await service.chat_prompt(asked.messages, asked.tools, asked.choice, asked.prefix)
    except LibremoeError as error:
        raise invalid(str(error), "messages") from error
    max_tokens = service.max_tokens(asked.max_tokens, len(prompt.ids), service.settings.default_max_tokens)
    params = params_from(stop=(*asked.stop, *prompt.stop), max_tokens=max_tokens, **asked.sampling)
    try:
        constraints = await service.constraint(asked.tools, asked.choice, asked.schema, asked.n)
    except LibremoeError as error:
        raise invalid(str(error), "tools" if asked.schema is None else asked.schema_field) from error
    job = Job(prompt.ids, params, asked.n, constraints, trim=prompt.template == "transcript",
              continues=bool(asked.prefix), experts=asked.experts)
    return Turn(job, prompt.template, asked.choice, has_tools)


def check_tools(asked: Asked) -> None:
    names = [tool.name for tool in asked.tools]
    if len(set(names)) < len(names):
        raise invalid("two tools have the same name", "tools")
    if asked.choice.mode == "named" and asked.choice.name not in names:
        raise invalid(f"tool_choice names {asked.choice.name!r}, which is not among the tools", "tool_choice")
    if asked.choice.mode == "required" and not names:
        raise invalid("tool_choice asks for a tool, but there are no tools", "tool_choice")


@dataclass(frozen=True)
class Parts:
    """What was added to one answer: text or calls, and possibly its end."""

    index: int
    parts: list[Text | ToolCall]
    tokens: tuple[Logprob, ...] = ()
    finish_reason: str | None = None  # stop, length, tool_calls
    stop_text: str | None = None
    experts: tuple[Experts, ...] = ()


async def parts_of(turn: Turn, generation: Generation) -> AsyncGenerator[Parts]:
    """Pieces of a generation, with tool calls taken out of the text."""
    parsers = [turn.parser() for _ in range(turn.job.n)]
    async for piece in generation:
        parser = parsers[piece.index]
        finish: str | None = piece.finish_reason
        if parser is None:
            parts: list[Text | ToolCall] = [Text(piece.text)] if piece.text else []
        else:
            parts = parser.push(piece.text)
            if finish:
                parts += parser.finish()
            if finish == "stop" and parser.calls:
                finish = "tool_calls"
        if parts or piece.tokens or finish or piece.experts:
            yield Parts(piece.index, parts, piece.tokens, finish, piece.stop_text,
                        (piece.experts,) if piece.experts else ())


@dataclass
class Whole:
    """One answer, collected."""

    text: str = ""
    calls: list[ToolCall] = field(default_factory=list)
    tokens: list[Logprob] = field(default_factory=list)
    finish_reason: str = "stop"
    stop_text: str | None = None


async def collect(turn: Turn, generation: Generation) -> list[Whole]:
    wholes = [Whole() for _ in range(turn.job.n)]
    async with generation:
        async for more in parts_of(turn, generation):
            whole = wholes[more.index]
            for part in more.parts:
                if isinstance(part, Text):
                    whole.text += part.text
                else:
                    whole.calls.append(part)
            whole.tokens += more.tokens
            whole.finish_reason = more.finish_reason or whole.finish_reason
            whole.stop_text = more.stop_text or whole.stop_text
    return wholes


def text_of(content: str | Sequence[dict[str, Any]] | None, where: str, kinds: tuple[str, ...] = ("text",)) -> str:
    """The text of a content field: a string, or parts with a `text`. Raises ApiError 400 for images and the like."""
    if content is None or isinstance(content, str):
        return content or ""
    texts = []
    for i, part in enumerate(content):
        if part.get("type") not in kinds:
            raise invalid(
                f"{where}[{i}].type is {str(part.get('type'))[:40]!r}; this model reads {' and '.join(kinds)} only",
                f"{where}[{i}].type",
            )
        if not isinstance(part.get("text"), str):
            raise invalid(f"{where}[{i}].text must be a string", f"{where}[{i}].text")
        texts.append(part["text"])
    return "\n".join(texts)
