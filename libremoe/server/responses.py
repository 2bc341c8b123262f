"""POST /v1/responses: https://platform.openai.com/docs/api-reference/responses. Nothing is stored between requests."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from libremoe.chat.message import Message, Text, Tool, ToolCall, ToolChoice, ToolResult, said
from libremoe.server.body import read_body
from libremoe.server.errors import ApiError, invalid, openai_body
from libremoe.server.generate import Generation, start
from libremoe.server.schema import ResponsesRequest, ResponseToolChoice
from libremoe.server.service import Service
from libremoe.server.sse import EventStream, event, unless_gone
from libremoe.server.turn import Asked, Turn, Whole, collect, parts_of, prepare, text_of

TEXT_KINDS = ("input_text", "output_text", "text", "refusal")


async def responses(request: Request) -> Response:
    service: Service = request.app.state.service
    body = await read_body(request, ResponsesRequest, service.settings)
    service.check_model(body.model)
    turn = await prepare(service, _asked(body))
    generation = await start(service, [turn.job], request.state.key)
    if body.stream:
        return EventStream(service, _events(service, body, turn, generation), on_error)
    (whole,) = await unless_gone(service, request, collect(turn, generation))
    items = []
    if whole.text or not whole.calls:
        items.append(_message_item(f"msg_{turn.id}", whole.text, _status(whole)))
    items += [_call_item(call, "completed") for call in whole.calls]
    return JSONResponse(_finished(service, body, turn, generation, whole, items))


def on_error(error: ApiError) -> bytes:
    found = openai_body(error)["error"]
    code = found["code"] or found["type"]
    return event({"type": "error", "code": code, "message": found["message"], "param": found["param"],
                  "sequence_number": 0}, "error")


def _asked(body: ResponsesRequest) -> Asked:
    if body.previous_response_id is not None:
        raise invalid("nothing is stored here: send the whole conversation as input", "previous_response_id")
    if body.background:
        raise invalid("answers are not made in the background here", "background")
    messages = [said("system", body.instructions)] if body.instructions else []
    if isinstance(body.input, str):
        messages.append(said("user", body.input))
    else:
        for i, item in enumerate(body.input):
            messages += _item(item, f"input[{i}]")
    tools = []
    for i, tool in enumerate(body.tools or []):
        if tool.type != "function" or tool.name is None:
            raise invalid("this server runs no tools of its own: tools are functions with a name", f"tools[{i}].type")
        tools.append(Tool(tool.name, tool.description or "", tool.parameters or Tool("").parameters))
    return Asked(
        messages, tools, _choice(body), _schema(body), "text.format", body.max_output_tokens,
        sampling={"temperature": body.temperature, "top_p": body.top_p, "top_k": body.top_k, "min_p": body.min_p,
                  "repetition_penalty": body.repetition_penalty, "experts": body.experts},
    )


def _choice(body: ResponsesRequest) -> ToolChoice:
    parallel = body.parallel_tool_calls is not False
    if isinstance(body.tool_choice, ResponseToolChoice):
        return ToolChoice("named", body.tool_choice.name, parallel)
    return ToolChoice(body.tool_choice or "auto", None, parallel)


def _schema(body: ResponsesRequest) -> dict[str, Any] | None:
    format = body.text.format if body.text is not None else None
    if format is None or format.type == "text":
        return None
    if format.type == "json_object":
        return {"type": "object"}
    if format.schema_ is None:
        raise invalid("text.format.schema is missing", "text.format.schema")
    return format.schema_


def _item(item: dict[str, Any], at: str) -> list[Message]:
    """One item of the input, of the kinds that clients send back."""
    kind = item.get("type", "message")
    if kind == "reasoning":
        return []
    if kind == "function_call":
        fields = [item.get(name) for name in ("call_id", "name", "arguments")]
        if not all(isinstance(value, str) for value in fields):
            raise invalid("a function_call has a call_id, a name and arguments, all strings", at)
        return [Message("assistant", (ToolCall(*fields),))]  # type: ignore[arg-type]
    if kind == "function_call_output":
        if not isinstance(item.get("call_id"), str):
            raise invalid("a function_call_output has a call_id", f"{at}.call_id")
        return [Message("tool", (ToolResult(item["call_id"], _text(item.get("output"), f"{at}.output")),))]
    if kind != "message":
        raise invalid(f"input of type {str(kind)[:40]!r} is not known here", f"{at}.type")
    role = item.get("role")
    if role not in ("user", "assistant", "system", "developer"):
        raise invalid(f"{at}.role must be user, assistant, system or developer", f"{at}.role")
    return [said("system" if role == "developer" else role, _text(item.get("content"), f"{at}.content"))]


def _text(content: Any, at: str) -> str:
    if isinstance(content, list) and all(isinstance(part, dict) for part in content):
        return text_of(content, at, TEXT_KINDS)
    if not isinstance(content, str):
        raise invalid(f"{at} must be a string or a list of parts", at)
    return content


def _status(whole: Whole) -> str:
    return "incomplete" if whole.finish_reason == "length" else "completed"


def _message_item(item_id: str, text: str, status: str) -> dict[str, Any]:
    return {"id": item_id, "type": "message", "role": "assistant", "status": status, "content": [_text_part(text)]}


def _text_part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _call_item(call: ToolCall, status: str) -> dict[str, Any]:
    return {"id": f"fc_{call.id.removeprefix('call_')}", "type": "function_call", "call_id": call.id, "name": call.name,
            "arguments": call.arguments, "status": status}


def _object(
    service: Service, body: ResponsesRequest, turn: Turn, status: str, items: list[dict[str, Any]]
) -> dict[str, Any]:
    choice: Any = body.tool_choice or "auto"
    format = body.text.format if body.text is not None else None
    shown = format.model_dump(by_alias=True, exclude_none=True) if format is not None else {"type": "text"}
    return {
        "id": f"resp_{turn.id}", "object": "response", "created_at": turn.created, "status": status, "error": None,
        "incomplete_details": None, "instructions": body.instructions, "max_output_tokens": body.max_output_tokens,
        "model": service.model_id, "output": items, "parallel_tool_calls": body.parallel_tool_calls is not False,
        "previous_response_id": None, "store": False, "temperature": body.temperature, "top_p": body.top_p,
        "text": {"format": shown}, "truncation": "disabled", "usage": None, "metadata": body.metadata or {},
        "tool_choice": choice if isinstance(choice, str) else choice.model_dump(),
        "tools": [{**tool.model_dump(exclude_none=True), "strict": False} for tool in body.tools or []],
        "libremoe": {"template": turn.template},
    }


def _finished(service: Service, body: ResponsesRequest, turn: Turn, generation: Generation, whole: Whole,
              items: list[dict[str, Any]]) -> dict[str, Any]:
    found = _object(service, body, turn, _status(whole), items)
    found["incomplete_details"] = {"reason": "max_output_tokens"} if found["status"] == "incomplete" else None
    found["completed_at"] = int(time.time())
    prompt, completion = generation.prompt_tokens, generation.completion_tokens
    found["usage"] = {
        "input_tokens": prompt, "output_tokens": completion, "total_tokens": prompt + completion,
        "input_tokens_details": {"cached_tokens": min(generation.cached_tokens, prompt), "cache_write_tokens": 0},
        "output_tokens_details": {"reasoning_tokens": 0},
    }
    return found


class _Writer:
    """The events of one response, numbered, and the items as they become complete."""

    def __init__(self) -> None:
        self.number = 0
        self.items: list[dict[str, Any]] = []
        self.open_id = ""  # of the message that is being written
        self.text = ""

    def event(self, kind: str, **data: Any) -> bytes:
        found = event({"type": kind, "sequence_number": self.number, **data}, kind)
        self.number += 1
        return found

    def on_text(self, text: str) -> bytes:
        at = {"output_index": len(self.items), "content_index": 0}
        out = b""
        if not self.open_id:
            self.open_id = f"msg_{uuid.uuid4().hex[:24]}"
            item = {**_message_item(self.open_id, "", "in_progress"), "content": []}
            out += self.event("response.output_item.added", output_index=len(self.items), item=item)
            out += self.event("response.content_part.added", item_id=self.open_id, **at, part=_text_part(""))
        self.text += text
        return out + self.event("response.output_text.delta", item_id=self.open_id, **at, delta=text, logprobs=[])

    def on_call(self, call: ToolCall) -> bytes:
        out = self.end_text("completed")
        index, item = len(self.items), _call_item(call, "completed")
        begun = {**item, "arguments": "", "status": "in_progress"}
        out += self.event("response.output_item.added", output_index=index, item=begun)
        about = {"item_id": item["id"], "output_index": index}
        out += self.event("response.function_call_arguments.delta", **about, delta=call.arguments)
        out += self.event("response.function_call_arguments.done", **about, arguments=call.arguments, name=call.name)
        return out + self._done(item)

    def end_text(self, status: str) -> bytes:
        if not self.open_id:
            return b""
        at = {"item_id": self.open_id, "output_index": len(self.items), "content_index": 0}
        out = self.event("response.output_text.done", **at, text=self.text, logprobs=[])
        out += self.event("response.content_part.done", **at, part=_text_part(self.text))
        item = _message_item(self.open_id, self.text, status)
        self.open_id, self.text = "", ""
        return out + self._done(item)

    def _done(self, item: dict[str, Any]) -> bytes:
        self.items.append(item)
        return self.event("response.output_item.done", output_index=len(self.items) - 1, item=item)


async def _events(
    service: Service, body: ResponsesRequest, turn: Turn, generation: Generation
) -> AsyncGenerator[bytes]:
    writer, whole = _Writer(), Whole()
    begun = _object(service, body, turn, "in_progress", [])
    async with generation, aclosing(parts_of(turn, generation)) as more:
        yield writer.event("response.created", response=begun)
        yield writer.event("response.in_progress", response=begun)
        async for parts in more:
            for part in parts.parts:
                yield writer.on_text(part.text) if isinstance(part, Text) else writer.on_call(part)
            whole.finish_reason = parts.finish_reason or whole.finish_reason
        if not writer.items and not writer.open_id:
            yield writer.on_text("")
        yield writer.end_text(_status(whole))
        found = _finished(service, body, turn, generation, whole, writer.items)
        yield writer.event(f"response.{found['status']}", response=found)
