"""One turn of a conversation, top to bottom: plan, search, write, call tools, check citations, finish.

    async for event in reply(turns, persona, model, live, tools, options, approve):
        written.add(event)

`reply` is the only way to an answer; the page and the terminal differ in the model that they pass in and in how they
show events. Live answers work by plan: what the person asked is searched for, always, and the answer is written from
numbered excerpts. Text that came from elsewhere is data: once it is before the model, the model is offered no tools, so
nothing that a page says can call one.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from libremoe.chat import grounding
from libremoe.chat.conversation import Turn
from libremoe.chat.events import (
    CallAsked,
    CallDone,
    Ended,
    Event,
    Experts,
    Finished,
    Request,
    Searching,
    Sources,
    Started,
    TextDelta,
    Written,
    add_stats,
)
from libremoe.chat.message import Message, Part, Text, Tool, ToolCall, ToolResult, said
from libremoe.chat.persona import Persona, system_prompt
from libremoe.errors import LibremoeError

MAX_STEPS = 4  # rounds of tool calls in one answer
MAX_CALLS = 8  # calls in one answer
DEADLINE_S = 1800.0  # of one answer, tools and people's decisions included
CALL_DEADLINE_S = 60.0  # of one call
SEARCH_DEADLINE_S = 20.0  # of the search before a live answer
RESULT_CHARS = 16_000  # of what a tool brought, that the model reads
LEAST_RESULT_CHARS = 200
SHORT_CONTEXT = 2048  # tokens; below, tools are described only beside a number: small models call whatever is there
LEAST_ANSWER = 256  # tokens that an answer must have room for, less where the context is short


class ChatModel(Protocol):
    """Anything that answers: the served engine, the terminal's model, a function in a test."""

    name: str
    context_len: int

    async def count(self, request: Request) -> int:
        """How many tokens the prompt has."""

    def stream(self, request: Request) -> AsyncGenerator[TextDelta | ToolCall | Experts | Ended]:
        """The answer as it comes; Ended comes last. Closing it stops the model."""


class Live(Protocol):
    """Where fresh text comes from: libremoe.live.Live."""

    async def gather(self, asked: str, language: str = "en", deadline_s: float = 10.0, tag: str = "") -> Any: ...


class Tools(Protocol):
    """Where calls are run: tool_box.ToolBox."""

    def offered(self, names: Sequence[str]) -> list[Tool]:
        """Those of these names that there are."""

    def acts(self, name: str) -> bool:
        """Whether a call does anything outside this process, so that the person is asked first."""

    def reads(self, name: str) -> bool:
        """Whether a call brings text that others wrote."""

    async def run(self, call: ToolCall, tag: str = "") -> str:
        """The result. tag: the conversation's id. Raises LibremoeError."""


Approve = Callable[[CallAsked], Awaitable[bool]]


@dataclass(frozen=True)
class Options:
    """What the person chose for this answer. prefix: text of an answer that is continued; sources: its excerpts."""

    live: bool = False
    tools: tuple[str, ...] = ()
    language: str = "en"
    sampling: Mapping[str, Any] = field(default_factory=dict)
    experts: bool = False
    prefix: str = ""
    sources: tuple[dict[str, Any], ...] = ()
    tag: str = ""  # the conversation's id


async def reply(turns: Sequence[Turn | Message], persona: Persona, model: ChatModel, live: Live | None,
                tools: Tools | None, options: Options, approve: Approve) -> AsyncIterator[Event]:
    """The answer to the last of turns (a user's), as events, Finished at the end. Closing the iterator stops it all.

    Raises LibremoeError: the conversation does not fit, the model refuses it, the answer took longer than DEADLINE_S.
    """
    details: dict[str, Any] = {"persona": persona.name, "model": model.name, "live": options.live}
    messages = messages_of(turns)
    if not messages or messages[-1].role != "user":
        raise LibremoeError("the message has no words")
    question = messages[-1].text
    if await takes_system(model):
        system = system_prompt(persona, options.language)
        details["prompt_sha256"] = system.sha256
        messages = [said("system", system.text), *messages]
    yield Started(details)
    ends, written = time.monotonic() + DEADLINE_S, Written(prefix=options.prefix)
    request = Request(messages, sampling={**persona.sampling, **options.sampling}, prefix=options.prefix,
                      experts=options.experts)
    excerpts: Sequence[dict[str, Any]] = options.sources
    if options.live and live is not None and not excerpts:
        yield Searching(question)
        found = await grounding.search(live, question, options.language, SEARCH_DEADLINE_S, options.tag)
        excerpts, details = found.excerpts, details | found.details
    request, excerpts = await fit(model, request, excerpts, options.language)
    if options.live:
        yield Sources(tuple(excerpts))
        if note := grounding.opening(details, excerpts, options.language):
            written.add(TextDelta(note))
            yield TextDelta(note)
        if not excerpts:  # nothing to write from: that is the answer
            yield Finished(details | {"finish_reason": "stop", "sentences": []})
            return
    offered = [] if tools is None or excerpts or options.prefix else tools.offered(allowed(persona, options))
    if model.context_len < SHORT_CONTEXT and not any(letter.isdigit() for letter in question):
        offered = []
    suspect = any(isinstance(turn, Turn) and read_elsewhere(turn) for turn in turns)
    async with aclosing(_steps(request, model, tools, offered, suspect, len(excerpts), approve, ends,
                               options.tag)) as steps:
        async for event in steps:
            if isinstance(event, Ended):
                details |= {"template": event.template, "stats": event.stats, "finish_reason": event.finish_reason}
                continue
            written.add(event)
            yield event
    if excerpts:
        details["sentences"] = await grounding.check(written.text, excerpts)
    yield Finished(details)


async def takes_system(model: ChatModel) -> bool:
    """Whether the model reads a system message. Some chat templates refuse it (Mistral 7B's first), or leave it out
    because the model was trained without (our own small ones); then an answer carries no prompt_sha256."""
    asked = [said("user", "?")]
    try:
        return await model.count(Request([said("system", "Be brief."), *asked])) > await model.count(Request(asked))
    except LibremoeError:
        return False


async def _steps(request: Request, model: ChatModel, tools: Tools | None, offered: list[Tool], suspect: bool,
                 n_excerpts: int, approve: Approve, ends: float, tag: str) -> AsyncGenerator[Event | Ended]:
    """The model writes; what it calls is run and shown to it; and so on until it calls nothing more."""
    stats: dict[str, Any] = {}
    n_calls, ended = 0, Ended("stop", {}, "")
    for step in range(MAX_STEPS + 1):
        request = replace(request, tools=offered if step < MAX_STEPS and n_calls < MAX_CALLS else [])
        calls: list[ToolCall] = []
        text = ""
        marks = grounding.Marks(n_excerpts) if n_excerpts else None
        async with aclosing(model.stream(request)) as stream:
            async for event in _until(ends, stream):
                if isinstance(event, ToolCall):
                    calls.append(event)
                elif isinstance(event, TextDelta):
                    shown = event.text if marks is None else marks.push(event.text)
                    text += shown
                    if shown:
                        yield TextDelta(shown)
                elif isinstance(event, Ended):
                    stats = add_stats(stats, event.stats)
                    ended = replace(event, stats=stats)
                else:
                    yield replace(event, token=event.token + stats.get("tokens", 0))
        if marks is not None and (rest := marks.finish()):
            text += rest
            yield TextDelta(rest)
        if not calls or not request.tools or tools is None:
            yield ended
            return
        results: list[ToolResult] = []
        for call in calls[: MAX_CALLS - n_calls]:
            asked = CallAsked(call, _approval(tools, call.name, suspect))
            yield asked
            done = await _run(asked, tools, [tool.name for tool in request.tools], approve, ends, tag)
            results.append(done.result)
            yield done
            if done.reads:
                offered = []  # what others wrote is before the model now: it calls nothing more
                break
        n_calls += len(results)
        spoken: list[Part] = [Text(text)] if text else []
        answer = Message("assistant", (*spoken, *calls[: len(results)]))
        request = replace(request, messages=[*request.messages, answer])
        request = await _with_results(model, request, results)


async def _with_results(model: ChatModel, request: Request, results: Sequence[ToolResult]) -> Request:
    """The request with what tools brought, cut to what the context holds."""
    chars = RESULT_CHARS
    while True:
        said_by_tools = [Message("tool", (ToolResult(r.call_id, r.text[:chars]),)) for r in results]
        try:
            return (await fit(model, replace(request, messages=[*request.messages, *said_by_tools]), (), "en"))[0]
        except LibremoeError:
            if chars < LEAST_RESULT_CHARS:
                raise
            chars //= 2


def _approval(tools: Tools, name: str, suspect: bool) -> str:
    return "always ask" if suspect and tools.acts(name) else "ask" if tools.acts(name) else "given"


async def _run(asked: CallAsked, tools: Tools, offered: Sequence[str], approve: Approve, ends: float,
               tag: str) -> CallDone:
    """One call: approved, run within its time, its result or what went wrong as text."""
    call, began = asked.call, time.monotonic()

    def done(text: str, ok: bool) -> CallDone:
        reads = call.name in offered and tools.reads(call.name)
        return CallDone(ToolResult(call.id, text), call.name, ok, time.monotonic() - began, reads)

    if call.name not in offered:
        return done(f"there is no tool {call.name[:80]!r} here", False)
    try:
        async with asyncio.timeout_at(asyncio.get_running_loop().time() + max(0.0, ends - time.monotonic())):
            allowed = asked.approval == "given" or await approve(asked)
        if not allowed:
            return done("the person did not allow this call", False)
        began = time.monotonic()
        async with asyncio.timeout(min(CALL_DEADLINE_S, max(0.0, ends - time.monotonic()))):
            return done(await tools.run(call, tag), True)
    except TimeoutError:
        return done("the tool took too long and was stopped", False)
    except LibremoeError as error:
        return done(f"error: {error}", False)


async def _until(ends: float, stream: AsyncIterator[Any]) -> AsyncIterator[Any]:
    """The stream, until its time is over."""
    while True:
        try:
            async with asyncio.timeout(max(0.0, ends - time.monotonic())):
                event = await anext(stream)
        except StopAsyncIteration:
            return
        except TimeoutError:
            raise LibremoeError(f"the answer took longer than {DEADLINE_S:g} s and was ended") from None
        yield event


def allowed(persona: Persona, options: Options) -> list[str]:
    """Names of tools that the persona has and the person chose. "mcp" in a persona admits the tools of MCP servers."""
    return [name for name in options.tools
            if name in persona.tools or ("mcp" in persona.tools and name.startswith("mcp_"))]


def messages_of(turns: Sequence[Turn | Message]) -> list[Message]:
    """What the model reads of earlier turns: their words. Calls and what tools brought stay behind: the answers that
    were made of them are there, and what pages said is not shown twice."""
    messages = []
    for turn in turns:
        message = turn.message if isinstance(turn, Turn) else turn
        text = "".join(part.text for part in message.parts if isinstance(part, Text)).strip()
        if text and message.role in ("user", "assistant"):
            messages.append(said(message.role, text))
    return messages


def read_elsewhere(turn: Turn) -> bool:
    """Whether others' text had a part in this turn."""
    return bool(turn.details.get("sources") or turn.details.get("read_elsewhere"))


async def fit(model: ChatModel, request: Request, excerpts: Sequence[dict[str, Any]],
              language: str) -> tuple[Request, list[dict[str, Any]]]:
    """The request with its excerpts put in, cut to what the context holds: the oldest turns go first, then the ends of
    excerpts, then the last excerpts. Raises LibremoeError where the last message alone is too long."""
    kept, messages = list(excerpts), list(request.messages)
    room = model.context_len - min(LEAST_ANSWER, model.context_len // 4)
    chars = grounding.EXCERPT_CHARS
    while True:
        kept = [grounding.shortened(one, chars) for one in kept]
        asked = [*messages[:-1], grounding.with_excerpts(messages[-1], kept, language)] if kept else messages
        made = replace(request, messages=asked)
        n_tokens = await model.count(made)
        if n_tokens <= room:
            return made, kept
        first = next(i for i, m in enumerate(messages) if m.role != "system")
        last = max(i for i, m in enumerate(messages) if m.role == "user")
        if first < last:
            del messages[first : first + max(1, int((last - first) * (1 - room / n_tokens) / 2))]
        elif kept and chars > grounding.LEAST_EXCERPT_CHARS:
            chars //= 2
        elif len(kept) > 1:
            kept.pop()
        else:
            raise LibremoeError(f"the message is too long: with the system prompt it has {n_tokens} tokens, and this "
                                f"model's context of {model.context_len} has room for {room} beside the answer")
