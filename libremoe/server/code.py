"""POST /api/code: help with code, for editors. As JSON, or as events where stream is true."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from libremoe.chat.code import Asked, Done, help_with
from libremoe.chat.events import TextDelta
from libremoe.chat.persona import load_personas
from libremoe.errors import LibremoeError
from libremoe.server.body import read_body
from libremoe.server.chat_model import ServiceModel
from libremoe.server.chat_schema import CodeRequest
from libremoe.server.chat_state import route
from libremoe.server.errors import ApiError, invalid, openai_body
from libremoe.server.service import Service
from libremoe.server.sse import EventStream, event, unless_gone

PERSONA = load_personas()["coder"]  # of the package: an editor's help is no conversation of a person's


async def code(request: Request) -> Response:
    service: Service = request.app.state.service
    body = await read_body(request, CodeRequest, service.settings)
    sampling = {name: value for name in ("temperature", "max_tokens") if (value := getattr(body, name)) is not None}
    asked = Asked(body.task, body.code, body.path or "", body.language or "", body.instruction or "",
                  body.suffix or "", sampling)
    model = ServiceModel(service, request.state.key)
    if body.stream:
        return EventStream(service, _events(asked, model), lambda error: event({"type": "error",
                                                                                **openai_body(error)["error"]}))
    done = await unless_gone(service, request, _whole(asked, model))
    return JSONResponse({"task": body.task, **_result(body.task, done), "stats": done.stats})


async def _whole(asked: Asked, model: ServiceModel) -> Done:
    done = Done()
    try:
        async with aclosing(help_with(asked, PERSONA, model)) as events:
            async for one in events:
                if isinstance(one, Done):
                    done = one
    except LibremoeError as error:
        raise _refusal(error) from error
    return done


async def _events(asked: Asked, model: ServiceModel) -> AsyncGenerator[bytes]:
    try:
        async with aclosing(help_with(asked, PERSONA, model)) as events:
            async for one in events:
                if isinstance(one, TextDelta):
                    yield event({"type": "delta", "text": one.text})
                else:
                    yield event({"type": "done", "task": asked.task, **_result(asked.task, one), "stats": one.stats})
    except LibremoeError as error:
        raise _refusal(error) from error


def _refusal(error: LibremoeError) -> ApiError:
    """The server's own refusal (a full queue, a quota) as it was; anything else is the client's mistake."""
    return error.__cause__ if isinstance(error.__cause__, ApiError) else invalid(str(error))


def _result(task: str, done: Done) -> dict[str, str]:
    return {"diff": done.diff} if task == "patch" else {"text": done.text}


ROUTES = [route("/api/code", POST=code)]
