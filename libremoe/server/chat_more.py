"""What surrounds conversations: the prompts that are served, sources and the ledger of what left, help with code."""

from __future__ import annotations

import asyncio
import html
from typing import Any

from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response

from libremoe.chat.persona import LANGUAGES, history
from libremoe.french import told, translated
from libremoe.server.body import read_body
from libremoe.server.chat_schema import NewSource, Offline
from libremoe.server.chat_state import Chat, chat_of, plain, route
from libremoe.server.errors import ApiError, language_of

MAX_ENTRIES = 1000  # of the ledger, in one answer
_PROMPTS_TEXT = ("Each answer names the SHA-256 of the system prompt it was written under. These are all of them, in "
                 "UTF-8 exactly as the model reads them; the first of each is in use.")
_STYLE = (":root{color-scheme:light dark}body{font:16px/1.5 system-ui,sans-serif;max-width:50rem;margin:2rem auto;"
          "padding:0 1rem}pre{white-space:pre-wrap;background:#8881;padding:.6rem}code{overflow-wrap:anywhere}")


def _live(request: Request) -> Any:
    live = chat_of(request).live
    if live is None:
        raise ApiError(404, "this server has no live sources: pip install 'libremoe[live]'", code="no_live")
    return live


def prompts_of(chat: Chat) -> list[dict[str, Any]]:
    """Every system prompt that may have been behind an answer, the one in use first."""
    found = []
    for persona in chat.personas.values():
        for language in LANGUAGES:
            versions = [{"since": one.since.isoformat(), "note": translated(one.note, language),
                         "sha256": one.sha256, "text": one.text}
                        for one in history(persona, language)]
            found.append({"persona": persona.name, "language": language, "title": persona.title.get(language) or
                          persona.title["en"], "own": persona.own, "versions": versions})
    return found


async def prompts(request: Request) -> Response:
    """As a page, or as JSON for whoever accepts that rather."""
    found = prompts_of(chat_of(request))
    if "text/html" not in request.headers.get("accept", ""):
        return JSONResponse({"prompts": found})
    language = language_of(request.headers)
    title, text = map(html.escape, (told("The system prompts of this server", language), told(_PROMPTS_TEXT, language)))
    parts = [f"<!doctype html><html lang={language}><meta charset=utf-8>",
             "<meta name=viewport content='width=device-width'>",
             f"<title>{title}</title><style>{_STYLE}</style><h1>{title}</h1><p>{text}</p>"]
    for one in sorted(found, key=lambda one: one["language"] != language):
        parts.append(f"<section lang={one['language']}><h2>{html.escape(one['title'])} ({html.escape(one['persona'])}, "
                     f"{one['language']})</h2>")
        for i, version in enumerate(one["versions"]):
            since = told("Since {day}.", one["language"], day=version["since"])
            shown = (f"<p>{since} {html.escape(version['note'])}<br><code>{version['sha256']}</code>"
                     f"</p><pre>{html.escape(version['text'])}</pre>")
            parts.append(shown if i == 0 else f"<details><summary>{version['since']}</summary>{shown}</details>")
        parts.append("</section>")
    policy = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"
    return HTMLResponse("".join(parts) + "</html>", headers={"Content-Security-Policy": policy})


async def ledger(request: Request) -> Response:
    live = _live(request)
    entries = await asyncio.to_thread(live.ledger.entries, MAX_ENTRIES)
    return JSONResponse({"entries": [plain(one) for one in entries]})


async def sources(request: Request) -> Response:
    live = _live(request)
    return JSONResponse({"sources": [plain(one) for one in await asyncio.to_thread(live.sources.list)]})


async def add_source(request: Request) -> Response:
    live = _live(request)
    body = await read_body(request, NewSource, request.app.state.service.settings)
    made = await live.add(body.url, body.kind, body.name, body.key_env, body.limit)
    return JSONResponse({"source": plain(made)}, 201)


async def remove_source(request: Request) -> Response:
    live, name = _live(request), request.path_params["name"]
    await asyncio.to_thread(live.sources.remove, name)
    return JSONResponse({"removed": name})


async def offline(request: Request) -> Response:
    live = _live(request)
    body = await read_body(request, Offline, request.app.state.service.settings)
    if not body.offline and not chat_of(request).live_allowed:
        raise ApiError(403, "this server was started without --live: nothing leaves, and the page cannot change that",
                       code="live_not_allowed")
    await asyncio.to_thread(live.keep_offline, body.offline)
    return JSONResponse({"offline": live.offline})


ROUTES = [
    route("/prompts", GET=prompts),
    route("/api/ledger", GET=ledger),
    route("/api/sources", GET=sources, POST=add_source),
    route("/api/sources/{name}", DELETE=remove_source),
    route("/api/offline", POST=offline),
]
