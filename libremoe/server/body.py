"""A request's body, read within limits and parsed into its schema; what is wrong with it becomes a 400 that names
the field."""

from __future__ import annotations

import asyncio
from typing import TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import from_json
from starlette.requests import ClientDisconnect, Request

from libremoe.server.errors import ApiError, invalid
from libremoe.server.service import Settings
from libremoe.server.sse import Gone

M = TypeVar("M", bound=BaseModel)
DISCARD_BYTES = 64 << 20
LARGE_BYTES = 64 << 10  # parsed in a thread, so that nobody else waits
# Fields that would change what the server trusts or that ask for what is not there: silence about them would mislead.
REFUSED = {
    "chat_template": "templates come from the model's files, never from a request",
    "functions": "use tools instead",
    "function_call": "use tool_choice instead",
    "audio": "this model has text only",
    "prediction": "is not offered by this server",
    "web_search_options": "this server fetches nothing",
}


JSON_TYPES = ("application/json",)  # what a form of another page can send is not among them


async def read_body(request: Request, model: type[M], settings: Settings) -> M:
    """Raises ApiError: 400 not JSON, too deep or a wrong field, 408 too slow, 413 too long, 415 another type."""
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if kind not in JSON_TYPES:
        raise ApiError(415, "send JSON with 'Content-Type: application/json'")
    body = await read_bytes(request, settings.max_body_bytes, settings.body_timeout_s)
    if len(body) < LARGE_BYTES:
        return _parse(body, model)
    return await asyncio.to_thread(_parse, body, model)


async def read_bytes(request: Request, max_bytes: int, timeout_s: float) -> bytes:
    """Raises ApiError: 408 too slow, 413 too long."""
    too_long = ApiError(413, f"the body is longer than {max_bytes} bytes", headers={"Connection": "close"})
    body, discarded = bytearray(), 0
    try:
        async with asyncio.timeout(timeout_s):
            async for chunk in request.stream():
                if not discarded and len(body) + len(chunk) <= max_bytes:
                    body += chunk
                    continue
                # Read on for a while: a connection that is closed with bytes unread loses the answer on its way.
                discarded += len(chunk)
                if discarded > DISCARD_BYTES:
                    raise too_long
    except TimeoutError:
        raise ApiError(408, f"the body did not arrive within {timeout_s:g} s",
                       headers={"Connection": "close"}) from None
    except ClientDisconnect:
        raise Gone from None
    if discarded:
        raise too_long
    return bytes(body)


def _parse(body: bytes, model: type[M]) -> M:
    try:
        found = from_json(body, allow_inf_nan=False)  # refuses more than 200 levels, and halves of surrogate pairs
    except ValueError as error:
        raise invalid(f"the body is not JSON that can be used: {error}") from None
    if not isinstance(found, dict):
        raise invalid("the body must be a JSON object")
    for name, reason in REFUSED.items():
        if found.get(name) is not None:
            raise invalid(f"{name}: {reason}", name, "unsupported_parameter")
    try:
        return model.model_validate(found)
    except ValidationError as error:
        raise _named(error) from None
    except RecursionError:
        raise invalid("the body is nested too deeply") from None


def _named(error: ValidationError) -> ApiError:
    """The first mistake, as `messages[0].content: reason`."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    field = ""
    for step in first["loc"]:
        if isinstance(step, int):
            field += f"[{step}]"
        elif step.isidentifier() and step not in ("str", "list", "int", "constrained"):  # a branch of a union
            field += f".{step}" if field else step
    message = first["msg"].removeprefix("Value error, ")
    code = "missing_required_parameter" if first["type"] == "missing" else "invalid_value"
    return invalid(f"{field}: {message}" if field else message, field or None, code)
