"""POST /v1/messages and /v1/messages/count_tokens: https://docs.anthropic.com/en/api/messages"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from libremoe.chat.message import Message, Part, Text, Tool, ToolCall, ToolChoice, ToolResult, said
from libremoe.errors import LibremoeError
from libremoe.server.body import read_body
from libremoe.server.errors import ApiError, anthropic_body, invalid
from libremoe.server.generate import Generation, start
from libremoe.server.schema import AnthropicMessage, CountTokensRequest, MessagesRequest
from libremoe.server.service import Service
from libremoe.server.sse import ANTHROPIC_PING, EventStream, event, unless_gone
from libremoe.server.turn import Asked, Turn, Whole, check_tools, collect, parts_of, prepare, text_of


async def messages(request: Request) -> Response:
    service: Service = request.app.state.service
    body = await read_body(request, MessagesRequest, service.settings)
    service.check_model(body.model)
    asked = _asked(body)
    asked.max_tokens = body.max_tokens
    if body.output_config is not None and body.output_config.format is not None:
        asked.schema, asked.schema_field = body.output_config.format.schema_, "output_config.format.schema"
    asked.stop = tuple(body.stop_sequences or ())
    asked.sampling = {"temperature": body.temperature, "top_p": body.top_p, "top_k": body.top_k,
                       "experts": body.experts}
    turn = await prepare(service, asked)
    generation = await start(service, [turn.job], request.state.key)
    if body.stream:
        return EventStream(service, _events(service, body, turn, generation), on_error, ANTHROPIC_PING)
    (whole,) = await unless_gone(service, request, collect(turn, generation))
    return JSONResponse({
        **_head(service, turn), "content": _content(whole), **_stop(body, whole.finish_reason, whole.stop_text),
        "usage": _usage(generation, generation.completion_tokens),
    })


async def count_tokens(request: Request) -> Response:
    service: Service = request.app.state.service
    body = await read_body(request, CountTokensRequest, service.settings)
    service.check_model(body.model)
    asked = _asked(body)
    check_tools(asked)
    try:
        prompt = await service.chat_prompt(asked.messages, asked.tools, asked.choice)
    except LibremoeError as error:
        raise invalid(str(error), "messages") from error
    return JSONResponse({"input_tokens": len(prompt.ids)})


def on_error(error: ApiError) -> bytes:
    return event(anthropic_body(error), "error")


def _asked(body: CountTokensRequest) -> Asked:
    system = text_of(body.system, "system")
    found = [said("system", system)] if system else []
    for i, message in enumerate(body.messages):
        found += _messages(message, f"messages[{i}]")
    tools = []
    for i, tool in enumerate(body.tools or []):
        if tool.type not in (None, "custom"):
            raise invalid(f"this server runs no tools of its own, such as {tool.type[:40]!r}", f"tools[{i}].type")
        tools.append(Tool(tool.name, tool.description or "", tool.input_schema or Tool("").parameters))
    return Asked(found, tools, _choice(body))


def _choice(body: CountTokensRequest) -> ToolChoice:
    asked = body.tool_choice
    if asked is None:
        return ToolChoice()
    if asked.type == "tool" and asked.name is None:
        raise invalid("tool_choice.name is missing", "tool_choice.name")
    mode = {"auto": "auto", "any": "required", "tool": "named", "none": "none"}[asked.type]
    return ToolChoice(mode, asked.name, not asked.disable_parallel_tool_use)  # type: ignore[arg-type]


def _messages(message: AnthropicMessage, where: str) -> list[Message]:
    """A message as ours; tool results, which Anthropic puts into a user's message, become messages before it."""
    if isinstance(message.content, str):
        return [said(message.role, message.content)]
    parts: list[Part] = []
    results: list[Message] = []
    for i, block in enumerate(message.content):
        at = f"{where}.content[{i}]"
        kind = block.get("type")
        if kind == "tool_use":
            parts.append(_tool_use(block, at))
        elif kind == "tool_result":
            results.append(Message("tool", (_tool_result(block, at),)))
        elif kind not in ("thinking", "redacted_thinking"):  # a model's own notes are not shown to it again
            parts.append(Text(text_of([block], f"{where}.content")))
    if any(isinstance(part, ToolCall) for part in parts) and message.role != "assistant":
        raise invalid("only the assistant uses tools", f"{where}.content")
    return results + ([Message(message.role, tuple(parts))] if parts else [])


def _tool_use(block: dict[str, Any], at: str) -> ToolCall:
    name, arguments, call_id = block.get("name"), block.get("input"), block.get("id")
    if not isinstance(name, str) or not isinstance(call_id, str) or not isinstance(arguments, dict):
        raise invalid("a tool_use block has an id, a name, and an object as its input", at)
    return ToolCall(call_id, name, json.dumps(arguments, ensure_ascii=False))


def _tool_result(block: dict[str, Any], at: str) -> ToolResult:
    call_id, content = block.get("tool_use_id"), block.get("content")
    if not isinstance(call_id, str):
        raise invalid("a tool_result block has a tool_use_id", f"{at}.tool_use_id")
    if content is not None and not isinstance(content, str):
        if not isinstance(content, list) or not all(isinstance(each, dict) for each in content):
            raise invalid("content must be a string or a list of blocks", f"{at}.content")
        content = text_of(content, f"{at}.content")
    return ToolResult(call_id, content or "")


def _head(service: Service, turn: Turn) -> dict[str, Any]:
    return {"id": f"msg_{turn.id}", "type": "message", "role": "assistant", "model": service.model_id,
            "libremoe": {"template": turn.template}}


def _usage(generation: Generation, output_tokens: int) -> dict[str, int]:
    # Anthropic counts what was found in the cache beside input_tokens, not within.
    cached = min(generation.cached_tokens, generation.prompt_tokens)
    return {"input_tokens": generation.prompt_tokens - cached, "cache_read_input_tokens": cached,
            "cache_creation_input_tokens": 0, "output_tokens": output_tokens}


def _stop(body: MessagesRequest, finish_reason: str, stop_text: str | None) -> dict[str, Any]:
    """stop_reason and stop_sequence. A stop string of the transcript's is the end of the turn, not the client's."""
    by_client = stop_text is not None and stop_text in (body.stop_sequences or ())
    if finish_reason == "stop" and by_client:
        return {"stop_reason": "stop_sequence", "stop_sequence": stop_text}
    reason = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}[finish_reason]
    return {"stop_reason": reason, "stop_sequence": None}


def _input(call: ToolCall) -> dict[str, Any]:
    try:
        found = json.loads(call.arguments)
    except (ValueError, RecursionError):
        found = None  # cut off by max_tokens: Anthropic's blocks hold objects only
    return found if isinstance(found, dict) else {}


def _tool_block(call: ToolCall) -> dict[str, Any]:
    return {
        "type": "tool_use",
        "id": f"toolu_{call.id.removeprefix('call_')}",
        "name": call.name,
        "input": _input(call),
    }


def _content(whole: Whole) -> list[dict[str, Any]]:
    text = [{"type": "text", "text": whole.text}] if whole.text or not whole.calls else []
    return [*text, *map(_tool_block, whole.calls)]


async def _events(service: Service, body: MessagesRequest, turn: Turn, generation: Generation) -> AsyncGenerator[bytes]:
    def named(kind: str, **data: Any) -> bytes:
        return event({"type": kind, **data}, kind)

    blocks, open_text = 0, False
    finish, stop_text = "stop", None
    async with generation, aclosing(parts_of(turn, generation)) as more:
        empty: dict[str, Any] = {"content": [], "stop_reason": None, "stop_sequence": None}
        yield named("message_start", message={**_head(service, turn), **empty, "usage": _usage(generation, 0)})
        yield named("ping")
        async for parts in more:
            for part in parts.parts:
                if isinstance(part, Text):
                    if not open_text:
                        open_text = True
                        yield named("content_block_start", index=blocks, content_block={"type": "text", "text": ""})
                    yield named("content_block_delta", index=blocks, delta={"type": "text_delta", "text": part.text})
                    continue
                if open_text:
                    yield named("content_block_stop", index=blocks)
                    blocks, open_text = blocks + 1, False
                yield named("content_block_start", index=blocks, content_block={**_tool_block(part), "input": {}})
                yield named("content_block_delta", index=blocks,
                            delta={"type": "input_json_delta", "partial_json": json.dumps(_input(part))})
                yield named("content_block_stop", index=blocks)
                blocks += 1
            finish, stop_text = parts.finish_reason or finish, parts.stop_text or stop_text
        if open_text:
            yield named("content_block_stop", index=blocks)
        yield named("message_delta", delta=_stop(body, finish, stop_text),
                    usage=_usage(generation, generation.completion_tokens))
        yield named("message_stop")
