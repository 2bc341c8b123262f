"""POST /v1/chat/completions: https://platform.openai.com/docs/api-reference/chat"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from libremoe.chat.message import Message, Part, Text, Tool, ToolCall, ToolChoice, ToolResult
from libremoe.engine.sequence import Logprob
from libremoe.server.body import read_body
from libremoe.server.errors import ApiError, invalid, openai_body
from libremoe.server.generate import SEEDS, Generation, start
from libremoe.server.schema import ChatMessage, ChatRequest, NamedTool, OpenAISampling, ResponseFormat
from libremoe.server.service import Service
from libremoe.server.sse import EventStream, event, unless_gone
from libremoe.server.turn import Asked, Turn, Whole, collect, parts_of, prepare, text_of


async def chat(request: Request) -> Response:
    service: Service = request.app.state.service
    body = await read_body(request, ChatRequest, service.settings)
    service.check_model(body.model)
    turn = await prepare(service, _asked(body))
    generation = await start(service, [turn.job], request.state.key)
    if body.stream:
        return EventStream(service, _events(service, body, turn, generation), on_error)
    wholes = await unless_gone(service, request, collect(turn, generation))
    choices = [_choice(service, body, i, whole) for i, whole in enumerate(wholes)]
    head = _head(service, turn, "chat.completion")
    return JSONResponse({**head, "choices": choices, "usage": usage(generation)})


def on_error(error: ApiError) -> bytes:
    return event(openai_body(error))


def _asked(body: ChatRequest) -> Asked:
    if body.top_logprobs is not None and not body.logprobs:
        raise invalid("top_logprobs needs logprobs: true", "top_logprobs")
    asked = body.max_completion_tokens if body.max_completion_tokens is not None else body.max_tokens
    return Asked(
        messages=[_message(m, i) for i, m in enumerate(body.messages)],
        tools=[Tool(t.function.name, t.function.description or "", t.function.parameters or Tool("").parameters)
               for t in body.tools or []],
        choice=_choice_of_tools(body),
        schema=_schema(body.response_format),
        max_tokens=asked,
        n=body.n or 1,
        stop=stops(body.stop),
        sampling={**sampling(body), "logprobs": (body.top_logprobs or 0) if body.logprobs else None},
    )


def stops(stop: str | list[str] | None) -> tuple[str, ...]:
    return () if stop is None else (stop,) if isinstance(stop, str) else tuple(stop)


def sampling(body: OpenAISampling) -> dict[str, Any]:
    """Fields that mean the same to the engine. Raises ApiError for a logit_bias that names no token."""
    bias = {}
    for token, value in (body.logit_bias or {}).items():
        if not (token.isascii() and token.isdecimal() and len(token) < 15):
            raise invalid(f"logit_bias has the key {token[:40]!r}; keys are token ids", "logit_bias")
        bias[int(token)] = value
    return {
        "temperature": body.temperature, "top_p": body.top_p, "top_k": body.top_k, "min_p": body.min_p,
        "repetition_penalty": body.repetition_penalty, "presence_penalty": body.presence_penalty,
        "frequency_penalty": body.frequency_penalty, "seed": body.seed % SEEDS if body.seed is not None else None,
        "logit_bias": bias or None, "ignore_eos": body.ignore_eos, "experts": body.experts,
    }


def _message(message: ChatMessage, i: int) -> Message:
    where = f"messages[{i}]"
    text = text_of(
        message.content, f"{where}.content", ("text", "refusal") if message.role == "assistant" else ("text",)
    )
    if message.role == "tool":
        if message.tool_call_id is None:
            raise invalid(f"{where}.tool_call_id says which call this answers; it is missing", f"{where}.tool_call_id")
        return Message("tool", (ToolResult(message.tool_call_id, text),))
    calls = [ToolCall(c.id, c.function.name, c.function.arguments) for c in message.tool_calls or []]
    if calls and message.role != "assistant":
        raise invalid(f"{where}.tool_calls: only the assistant calls tools", f"{where}.tool_calls")
    if message.content is None and not calls:
        raise invalid(f"{where}.content is missing", f"{where}.content")
    parts: list[Part] = [Text(text)] if text or not calls else []
    return Message("system" if message.role == "developer" else message.role, (*parts, *calls))


def _choice_of_tools(body: ChatRequest) -> ToolChoice:
    parallel = body.parallel_tool_calls is not False
    if isinstance(body.tool_choice, NamedTool):
        return ToolChoice("named", body.tool_choice.function.name, parallel)
    return ToolChoice(body.tool_choice or "auto", None, parallel)


def _schema(format: ResponseFormat | None) -> dict[str, Any] | None:
    if format is None or format.type == "text":
        return None
    if format.type == "json_object":
        return {"type": "object"}
    if format.json_schema is None:
        raise invalid("response_format.json_schema is missing", "response_format.json_schema")
    return format.json_schema.schema_


def _head(service: Service, turn: Turn, object: str) -> dict[str, Any]:
    return {
        "id": f"chatcmpl-{turn.id}", "object": object, "created": turn.created, "model": service.model_id,
        "system_fingerprint": service.fingerprint, "libremoe": {"template": turn.template},
    }


def usage(generation: Generation) -> dict[str, Any]:
    prompt, completion = generation.prompt_tokens, generation.completion_tokens
    return {
        "prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": min(generation.cached_tokens, prompt)},
    }


def _logprobs(service: Service, tokens: list[Logprob] | tuple[Logprob, ...]) -> dict[str, Any]:
    def entry(token: int, logprob: float) -> dict[str, Any]:
        return {"token": service.token_text(token), "logprob": logprob, "bytes": service.token_bytes(token)}

    content = [{**entry(t.token, t.logprob), "top_logprobs": [entry(i, p) for i, p in t.top]} for t in tokens]
    return {"content": content, "refusal": None}


def _call(call: ToolCall) -> dict[str, Any]:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def _choice(service: Service, body: ChatRequest, index: int, whole: Whole) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": whole.text, "refusal": None}
    if whole.calls:
        message |= {"content": whole.text or None, "tool_calls": [_call(call) for call in whole.calls]}
    return {
        "index": index, "message": message, "finish_reason": whole.finish_reason,
        "logprobs": _logprobs(service, whole.tokens) if body.logprobs else None,
    }


async def _events(service: Service, body: ChatRequest, turn: Turn, generation: Generation) -> AsyncGenerator[bytes]:
    head = _head(service, turn, "chat.completion.chunk")
    with_usage = body.stream_options is not None and bool(body.stream_options.include_usage)
    if with_usage:
        head["usage"] = None

    def chunk(index: int, delta: dict[str, Any], finish: str | None = None, logprobs: Any = None) -> bytes:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
        return event({**head, "choices": [choice]})

    calls = [0] * turn.job.n
    async with generation, aclosing(parts_of(turn, generation)) as more:
        for i in range(turn.job.n):
            yield chunk(i, {"role": "assistant", "content": "", "refusal": None})
        async for parts in more:
            logprobs = _logprobs(service, parts.tokens) if body.logprobs and parts.tokens else None
            for part in parts.parts or ([Text("")] if logprobs else []):
                if isinstance(part, Text):
                    yield chunk(parts.index, {"content": part.text}, logprobs=logprobs)
                    logprobs = None
                else:
                    yield chunk(parts.index, {"tool_calls": [{"index": calls[parts.index], **_call(part)}]})
                    calls[parts.index] += 1
            if parts.finish_reason:
                yield chunk(parts.index, {}, parts.finish_reason)
        if with_usage:
            yield event({**head, "choices": [], "usage": usage(generation)})
        yield event("[DONE]")
