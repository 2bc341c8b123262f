"""The API of the page: conversations, answers as server-sent events, what the server can do. docs/chat.md lists it.

An answer's stream is a view of it: closing the stream does not stop the answer (answers.py).
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from libremoe.chat import session
from libremoe.chat.conversation import (
    Conversation,
    NotFound,
    Turn,
    conversation_as_dict,
    path_to,
    title_from,
    turn_as_dict,
)
from libremoe.chat.message import Text
from libremoe.french import translated
from libremoe.server.answers import OpenAnswer
from libremoe.server.body import read_body, read_bytes
from libremoe.server.chat_model import ServiceModel
from libremoe.server.chat_schema import (
    AnotherAnswer,
    AnswerOptions,
    ChangeConversation,
    Decision,
    NewConversation,
    NewTurn,
)
from libremoe.server.chat_state import Chat, chat_of, plain, render, route
from libremoe.server.errors import ApiError, invalid, language_of, openai_body
from libremoe.server.service import Service
from libremoe.server.sse import EventStream, event

MAX_CONVERSATIONS = 500  # in one list
MAX_HITS = 50
MAX_QUERY = 500
MAX_IMPORT_BYTES = 256 << 20
IMPORT_TYPES = ("application/json", "application/zip", "application/octet-stream")
EXPORTS = {"markdown": ("text/markdown; charset=utf-8", "md"), "json": ("application/json", "json"),
           "html": ("text/html; charset=utf-8", "html")}


async def state(request: Request) -> Response:
    service: Service = request.app.state.service
    chat = chat_of(request)
    sources = await asyncio.to_thread(chat.live.sources.list) if chat.live is not None else []
    return JSONResponse({
        "model": service.model_id, "family": chat.family, "context_len": service.context_len,
        "personas": [{"name": p.name, "title": p.title, "description": p.description, "tools": p.tools,
                      "sampling": p.sampling, "own": p.own} for p in chat.personas.values()],
        "live": {"configured": bool(sources), "sources": [plain(s) for s in sources]},
        "tools": chat.tools.described() if chat.tools is not None else [],
        "offline": chat.live.offline if chat.live is not None else True,
        "random_weights": chat.random_weights, "n_layers": chat.n_layers, "n_experts": chat.n_experts,
        "atlas": chat.n_experts > 0, "keeps": chat.folder is not None,
    })


async def conversations(request: Request) -> Response:
    store, query = chat_of(request).store, request.query_params.get("query", "").strip()
    found = await asyncio.to_thread(store.conversations, MAX_CONVERSATIONS)
    body: dict[str, Any] = {"conversations": [conversation_as_dict(one) for one in found]}
    if query:
        hits = await asyncio.to_thread(store.search, query[:MAX_QUERY], MAX_HITS)
        body["hits"] = [{"conversation_id": h.conversation_id, "title": h.title, "turn_id": h.turn_id,
                         "snippet": h.snippet} for h in hits]
    return JSONResponse(body)


async def new_conversation(request: Request) -> Response:
    chat = chat_of(request)
    body = await read_body(request, NewConversation, request.app.state.service.settings)
    chat.persona(body.persona)
    made = await asyncio.to_thread(chat.store.create, body.title.strip(), body.persona, body.language)
    return JSONResponse(conversation_as_dict(made), 201)


async def conversation(request: Request) -> Response:
    store = chat_of(request).store
    id = request.path_params["id"]

    def read() -> dict[str, Any]:
        found = store.conversation(id)
        shown = [_in(language_of(request.headers), _shown(turn)) for turn in store.turns(id)]
        return {"conversation": conversation_as_dict(found), "turns": shown, "leaf_id": found.leaf_id}

    return JSONResponse(await asyncio.to_thread(read))


def _shown(turn: Turn) -> dict[str, Any]:
    """A turn with its words rendered; what tools said is in its parts."""
    text = "".join(part.text for part in turn.parts if isinstance(part, Text))
    html = render(text, turn.details.get("sources", []), turn.details.get("sentences", []))
    return turn_as_dict(turn) | {"html": html}


def _in(language: str, turn: dict[str, Any]) -> dict[str, Any]:
    """A turn as JSON, with the reason of its failure in a language; kept is the English one."""
    error = turn["details"].get("error")
    return turn if error is None else turn | {"details": turn["details"] | {"error": translated(error, language)}}


async def change_conversation(request: Request) -> Response:
    chat = chat_of(request)
    body = await read_body(request, ChangeConversation, request.app.state.service.settings)
    if body.persona is not None:
        chat.persona(body.persona)
    id = request.path_params["id"]

    def change() -> Conversation:
        chat.store.conversation(id)
        if body.title is not None:
            chat.store.rename(id, body.title.strip())
        if body.persona is not None:
            chat.store.set_persona(id, body.persona)
        if body.leaf_id is not None:
            chat.store.select(id, body.leaf_id)
        return chat.store.conversation(id)

    return JSONResponse(conversation_as_dict(await asyncio.to_thread(change)))


async def delete_conversation(request: Request) -> Response:
    chat, id = chat_of(request), request.path_params["id"]
    await _stop_all(chat.answers.of_conversation(id))
    await asyncio.to_thread(chat.store.delete, id)
    chat.answers.allowed.pop(id, None)
    if chat.live is not None:
        await asyncio.to_thread(chat.live.forget, id)
    return JSONResponse({"deleted": id})


async def delete_all(request: Request) -> Response:
    chat = chat_of(request)
    await _stop_all(list(chat.answers.open.values()))
    await asyncio.to_thread(chat.store.delete_all)
    chat.answers.allowed.clear()
    if chat.live is not None:
        await asyncio.to_thread(chat.live.ledger.forget)
    return JSONResponse({"deleted": "all"})


async def _stop_all(answers: Sequence[OpenAnswer]) -> None:
    """An answer that is still being written would write again what is erased."""
    for answer in answers:
        answer.stop()
    for answer in answers:
        await answer.ended()


async def new_turn(request: Request) -> Response:
    """A person's turn and its answer. An edit is the same, with the parent of the turn that is edited."""
    chat, body = await _answer_body(request, NewTurn)
    id = request.path_params["id"]
    found = await asyncio.to_thread(chat.store.conversation, id)
    turns = await asyncio.to_thread(chat.store.turns, id)
    _parent(turns, body.parent_id)
    asked = await asyncio.to_thread(chat.store.add, id, body.parent_id, "user", (Text(body.text),))
    if not found.title:
        await asyncio.to_thread(chat.store.rename, id, title_from(asked.parts))
    answer = await _begin(request, chat, found, [*turns, asked], asked, body)
    return _stream(request, answer, [asked])


async def regenerate(request: Request) -> Response:
    """Another answer to the same turn: a sibling of the one that is named."""
    chat, body = await _answer_body(request, AnotherAnswer)
    found, turns, turn = await _answered(chat, request.path_params["id"], body.turn_id)
    asked = next((t for t in turns if t.id == turn.parent_id), None)
    if asked is None or asked.role != "user":
        raise invalid("this answer has no question before it", "turn_id")
    return _stream(request, await _begin(request, chat, found, turns, asked, body), [])


async def continue_answer(request: Request) -> Response:
    """Goes on with an answer that was stopped, failed or cut; what it has is kept, and so are its excerpts."""
    chat, body = await _answer_body(request, AnotherAnswer)
    found, turns, turn = await _answered(chat, request.path_params["id"], body.turn_id)
    asked = next((t for t in turns if t.id == turn.parent_id), None)
    if asked is None:
        raise invalid("this answer has no question before it", "turn_id")
    return _stream(request, await _begin(request, chat, found, turns, asked, body, turn), [])


async def _answer_body(request: Request, model: type[Any]) -> tuple[Chat, Any]:
    chat = chat_of(request)
    body = await read_body(request, model, request.app.state.service.settings)
    chat.answers.check_room()
    if body.persona is not None:
        chat.persona(body.persona)
    return chat, body


async def _answered(chat: Chat, id: str, turn_id: str) -> tuple[Conversation, list[Turn], Turn]:
    found = await asyncio.to_thread(chat.store.conversation, id)
    turns = await asyncio.to_thread(chat.store.turns, id)
    turn = next((t for t in turns if t.id == turn_id), None)
    if turn is None:
        raise NotFound(f"turn {turn_id!r}: not in this conversation")
    if turn.role != "assistant":
        raise invalid("turn_id must name an answer", "turn_id")
    if turn.id in chat.answers.open:
        raise ApiError(409, "this answer is being written: stop it first", param="turn_id", code="being_written")
    return found, turns, turn


def _parent(turns: Sequence[Turn], parent_id: str | None) -> None:
    parent = next((t for t in turns if t.id == parent_id), None)
    if parent_id is not None and parent is None:
        raise NotFound(f"turn {parent_id!r}: not in this conversation")
    if parent is not None and parent.role == "user":
        raise invalid("parent_id must name an answer, or be null for a first turn", "parent_id")
    if parent is not None and parent.state == "writing":
        raise ApiError(409, "the answer before this is being written: stop it first", param="parent_id",
                       code="being_written")


async def _begin(request: Request, chat: Chat, found: Conversation, turns: Sequence[Turn], asked: Turn,
                 body: AnswerOptions, continued: Turn | None = None) -> OpenAnswer:
    """Write down that an answer begins, and begin it."""
    service: Service = request.app.state.service
    persona = chat.persona(body.persona or (found.persona if found.persona in chat.personas else "regular"))
    sources: tuple[dict[str, Any], ...] = ()
    prefix = ""
    if continued is None:
        details = {"persona": persona.name}
        turn = await asyncio.to_thread(chat.store.add, found.id, asked.id, "assistant", (), "writing", details)
    else:
        turn = await asyncio.to_thread(chat.store.update, continued.id, None, "writing")
        prefix = "".join(part.text for part in turn.parts if isinstance(part, Text))
        sources = tuple(turn.details.get("sources", ()))
    tools = chat.tools.names() if chat.tools is not None else []
    chosen = tools if body.tools is True else [] if body.tools is False else [t for t in body.tools if t in tools]
    options = session.Options(
        live=bool(sources) or (body.live and continued is None), tools=tuple(chosen),
        language=body.language or found.language, sampling=body.sampling(), experts=body.experts, prefix=prefix,
        sources=sources, tag=found.id)
    answer = OpenAnswer(chat.store, turn, prefix, render, chat.n_experts,
                        chat.answers.allowed.setdefault(found.id, set()))
    model = ServiceModel(service, request.state.key, chat.counters)
    events = session.reply(path_to(turns, asked.id), persona, model, chat.live, chat.tools, options, answer.approve)
    chat.answers.begin(answer, events)
    return answer


def _stream(request: Request, answer: OpenAnswer, before: Sequence[Turn]) -> Response:
    language = language_of(request.headers)

    async def events() -> AsyncGenerator[bytes]:
        for turn in before:
            yield event({"type": "turn", "turn": _in(language, _shown(turn))})
        yield event({"type": "turn", "turn": _in(language, turn_as_dict(answer.turn)) | {"html": ""}})
        async with aclosing(answer.follow()) as more:
            async for one in more:
                yield event(_event_in(language, one))

    return EventStream(request.app.state.service, events(), lambda error: event(
        _event_in(language, {"type": "error", **openai_body(error)["error"]})))


def _event_in(language: str, one: dict[str, Any]) -> dict[str, Any]:
    if one["type"] == "error":
        return one | {"message": translated(one["message"], language)}
    return one | {"turn": _in(language, one["turn"])} if "turn" in one else one


def _open_answer(request: Request) -> OpenAnswer:
    answer = chat_of(request).answers.open.get(request.path_params["id"])
    if answer is None:
        raise ApiError(404, "no answer with this id is being written", code="not_writing")
    return answer


async def follow(request: Request) -> Response:
    """An answer on its way, from its beginning: for a page that was loaded again."""
    return _stream(request, _open_answer(request), [])


async def stop(request: Request) -> Response:
    answer = _open_answer(request)
    answer.stop()
    await answer.ended()
    return JSONResponse({"turn": _in(language_of(request.headers), _shown(answer.turn))})


async def approve(request: Request) -> Response:
    body = await read_body(request, Decision, request.app.state.service.settings)
    if not _open_answer(request).decide(body.call_id, body.allow, body.always):
        raise ApiError(404, "no call with this id waits for a decision", param="call_id", code="not_waiting")
    return JSONResponse({"call_id": body.call_id, "allow": body.allow})


async def export(request: Request) -> Response:
    from libremoe.chat import export as exports

    store, id = chat_of(request).store, request.path_params["id"]
    kind = request.query_params.get("format", "markdown")
    if kind not in EXPORTS:
        raise invalid(f"format is {kind[:40]!r}; it may be {', '.join(EXPORTS)}", "format")

    def write() -> tuple[str, str]:
        found = store.conversation(id)
        function = {"markdown": exports.to_markdown, "json": exports.to_json, "html": exports.to_html}[kind]
        return found.title, function(found, store.turns(id))

    title, text = await asyncio.to_thread(write)
    media_type, suffix = EXPORTS[kind]
    name = re.sub(r"[^A-Za-z0-9]+", "-", title).strip("-")[:60] or "conversation"  # ASCII: it stands in a header
    return Response(text, media_type=media_type,
                    headers={"Content-Disposition": f'attachment; filename="{name}.{suffix}"'})


async def import_file(request: Request) -> Response:
    chat = chat_of(request)
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if kind not in IMPORT_TYPES:  # what a form of another page can send is not among them
        raise ApiError(415, f"send the file with a Content-Type of {', '.join(IMPORT_TYPES)}")
    content = await read_bytes(request, MAX_IMPORT_BYTES, request.app.state.service.settings.body_timeout_s)
    from libremoe.chat import importing

    found = await asyncio.to_thread(importing.read_export, content)
    ids = [(await asyncio.to_thread(chat.store.insert, one, turns)).id for one, turns in found]
    return JSONResponse({"imported": len(ids), "ids": ids}, 201)


ROUTES = [
    route("/api/state", GET=state),
    route("/api/conversations", GET=conversations, POST=new_conversation, DELETE=delete_all),
    route("/api/conversations/{id}", GET=conversation, PATCH=change_conversation, DELETE=delete_conversation),
    route("/api/conversations/{id}/turns", POST=new_turn),
    route("/api/conversations/{id}/regenerate", POST=regenerate),
    route("/api/conversations/{id}/continue", POST=continue_answer),
    route("/api/conversations/{id}/export", GET=export),
    route("/api/turns/{id}/events", GET=follow),
    route("/api/turns/{id}/stop", POST=stop),
    route("/api/turns/{id}/approve", POST=approve),
    route("/api/import", POST=import_file),
]
