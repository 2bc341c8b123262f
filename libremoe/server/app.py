"""The application: its routes, and the guards before them. Routes translate in, let the engine work, and translate out.

Guards, outermost first: security headers and metrics; the Host and Origin of the request; whether too many are
connected; the key; whether the queue has room. /health alone answers without a key, and the form that asks for one.
CORS is off unless the server was started with an origin that may call.
"""

from __future__ import annotations

import logging
import time
import uuid
from dataclasses import dataclass
from urllib.parse import urlsplit

from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from libremoe.chat.conversation import NotFound
from libremoe.errors import LibremoeError
from libremoe.server import chat_api, chat_more, code, pages
from libremoe.server.anthropic import count_tokens, messages
from libremoe.server.errors import CHAT_PREFIX, ApiError, language_of, response_for
from libremoe.server.generate import refusal
from libremoe.server.openai_chat import chat
from libremoe.server.openai_completions import completions
from libremoe.server.openapi import openapi_json, page
from libremoe.server.plain import detokenize, embeddings, health, metrics, model, models, tokenize, tokenizer_info
from libremoe.server.protocol import CROWDED
from libremoe.server.responses import responses
from libremoe.server.service import Service
from libremoe.server.sse import Gone

log = logging.getLogger(__name__)
CROWDED_RETRY_S = 1.0
CLOSED_CONNECTION = 499  # nobody reads this answer; for the metrics
SECURITY_HEADERS = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
}
OPEN_PATHS = frozenset({"/health"}) | pages.OPEN_PATHS
# What a key must be allowed to do there; None: any key. Paths that are not listed need no less than a key; all under
# CHAT_PREFIX is a person's own and needs the scope "chat".
SCOPES = {
    "/v1/chat/completions": "generate", "/v1/completions": "generate", "/v1/responses": "generate",
    "/v1/messages": "generate", "/v1/messages/count_tokens": "tokenize", "/tokenize": "tokenize",
    "/detokenize": "tokenize", "/tokenizer_info": "tokenize", "/v1/embeddings": "embed", "/metrics": "metrics",
    "/api/code": "generate",
}
ROUTES = [
    Route("/health", health, methods=["GET"]),
    Route("/metrics", metrics, methods=["GET"]),
    Route("/openapi.json", openapi_json, methods=["GET"]),
    Route("/docs", page, methods=["GET"]),
    Route("/v1/models", models, methods=["GET"]),
    Route("/v1/models/{name:path}", model, methods=["GET"]),
    Route("/v1/chat/completions", chat, methods=["POST"]),
    Route("/v1/completions", completions, methods=["POST"]),
    Route("/v1/responses", responses, methods=["POST"]),
    Route("/v1/embeddings", embeddings, methods=["POST"]),
    Route("/v1/messages", messages, methods=["POST"]),
    Route("/v1/messages/count_tokens", count_tokens, methods=["POST"]),
    Route("/tokenize", tokenize, methods=["POST"]),
    Route("/detokenize", detokenize, methods=["POST"]),
    Route("/tokenizer_info", tokenizer_info, methods=["GET"]),
    *chat_api.ROUTES,
    *chat_more.ROUTES,
    *code.ROUTES,
    *pages.ROUTES,
]


def make_app(service: Service) -> Starlette:
    """The ASGI application of one service."""
    handlers = {ApiError: _api_error, NotFound: _not_found, LibremoeError: _mistake, HTTPException: _http_error,
                Gone: _gone, Exception: _failure}
    app = Starlette(routes=ROUTES, exception_handlers=handlers)  # type: ignore[arg-type]
    app.router.redirect_slashes = False  # a redirect would name a Host that the client chose
    app.state.service = service
    app.add_middleware(_Guards, service=service)
    return app


async def _api_error(request: Request, error: ApiError) -> Response:
    return _told(request, error)


async def _mistake(request: Request, error: LibremoeError) -> Response:
    return _told(request, refusal(error))


async def _not_found(request: Request, error: NotFound) -> Response:
    return _told(request, ApiError(404, str(error), code="not_found"))


async def _http_error(request: Request, error: HTTPException) -> Response:
    path = request.url.path
    message = {404: f"there is no {path[:200]} here; see /openapi.json", 405: f"{path[:200]} takes another method"}
    return _told(request, ApiError(error.status_code, message.get(error.status_code, error.detail),
                                   headers=dict(error.headers or {})))


async def _gone(request: Request, error: Gone) -> Response:
    return Response(status_code=CLOSED_CONNECTION)


async def _failure(request: Request, error: Exception) -> Response:
    # Starlette raises it again once this is sent, so the log has the traceback; the client has none.
    return _told(request, ApiError(500, "the server failed at this request; its log says how"))


def _told(request: Request, error: ApiError) -> Response:
    path = request.url.path
    return response_for(path, error, language_of(request.headers))


@dataclass
class _Guards:
    app: ASGIApp
    service: Service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":  # no websockets here
            await send({"type": "websocket.close", "code": 1008})
            return
        headers = Headers(scope=scope)
        origin = headers.get("origin")
        allowed_origin = origin if origin is not None and origin in self.service.settings.origins else None
        reply = _Reply(scope, send, self.service, allowed_origin)
        try:
            self._check_origin(scope, headers, allowed_origin)
            if allowed_origin and scope["method"] == "OPTIONS" and "access-control-request-method" in headers:
                await _preflight()(scope, receive, reply)
                return
            _check_crowd(scope)
            self._check_key(scope, headers)
            self._check_room(scope)
        except ApiError as error:
            await self._refused(scope, headers, error)(scope, receive, reply)
            return
        await self.app(scope, receive, reply)

    def _refused(self, scope: Scope, headers: Headers, error: ApiError) -> Response:
        """A person who opens the page without a key is asked for one."""
        if error.status == 401 and scope["path"] == "/" and "text/html" in headers.get("accept", ""):
            return pages.login_page(language_of(headers), failed=False)
        return response_for(scope["path"], error, language_of(headers))

    def _check_origin(self, scope: Scope, headers: Headers, allowed_origin: str | None) -> None:
        """Refuses names that are not ours (DNS rebinding) and pages of other sites (a browser that was sent here)."""
        host = headers.get("host", "")
        hosts = self.service.settings.hosts
        if len(headers.getlist("host")) > 1 or (hosts is not None and _hostname(host) not in hosts):
            raise ApiError(403, f"the Host {host[:100]!r} is not this server's; it answers to {', '.join(hosts or ())}",
                           code="host_not_allowed")
        origin = headers.get("origin")
        if allowed_origin is not None:
            return
        if origin is not None and origin != f"{scope['scheme']}://{host}":
            raise ApiError(403, "web pages of other origins may not call this server (--allow-origin permits one)",
                           code="origin_not_allowed")
        if headers.get("sec-fetch-site") in ("cross-site", "same-site"):
            raise ApiError(403, "web pages of other sites may not call this server", code="origin_not_allowed")

    def _check_key(self, scope: Scope, headers: Headers) -> None:
        path = scope["path"]
        scope.setdefault("state", {})
        scope["state"]["key"] = None
        if path in OPEN_PATHS:
            return
        kind, _, secret = headers.get("authorization", "").partition(" ")
        given = secret.strip() if kind.lower() == "bearer" else headers.get("x-api-key")
        if not given and self.service.access.required:
            given = pages.secret_of(self.service, scope, headers)
        key = self.service.access.key_for(given)
        needed = SCOPES.get(path) or ("chat" if path.startswith(CHAT_PREFIX) else None)
        if key is not None and needed is not None and needed not in key.scopes:
            raise ApiError(
                403, f"the key {key.name} is not for this: it lacks the scope {needed}", code="scope_missing"
            )
        scope["state"]["key"] = key

    def _check_room(self, scope: Scope) -> None:
        """Refuses before a body is read or parsed: a flood must cost less than what it asks for."""
        if scope["method"] != "POST" or SCOPES.get(scope["path"]) != "generate":
            return
        try:
            self.service.engine.check_room()
        except LibremoeError as error:
            raise refusal(error) from error


def _check_crowd(scope: Scope) -> None:
    if scope.get("state", {}).get(CROWDED):
        raise ApiError(503, "too many connections are open; come again later", code="too_many_connections",
                       retry_after_s=CROWDED_RETRY_S, headers={"connection": "close"})


def _hostname(host: str) -> str:
    """Of a Host header: without the port, in small letters."""
    try:
        return (urlsplit(f"//{host}").hostname or "").lower()
    except ValueError:
        return ""


def _preflight() -> Response:
    return Response(status_code=204, headers={
        "Access-Control-Allow-Methods": "GET, POST", "Access-Control-Max-Age": "600",
        "Access-Control-Allow-Headers": "authorization, content-type, x-api-key, anthropic-version",
    })


class _Reply:
    """`send`, with our headers added and the answer counted."""

    def __init__(self, scope: Scope, send: Send, service: Service, allowed_origin: str | None):
        self.scope, self.send, self.service, self.allowed_origin = scope, send, service, allowed_origin
        self.began = time.monotonic()

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = message.setdefault("headers", [])
            present = {name for name, _ in headers}
            headers += [(k.encode(), v.encode()) for k, v in SECURITY_HEADERS.items() if k.encode() not in present]
            headers.append((b"x-request-id", uuid.uuid4().hex.encode()))
            if self.allowed_origin:
                headers += [(b"access-control-allow-origin", self.allowed_origin.encode()), (b"vary", b"origin")]
            path = self.scope["path"]
            route = path if path in _KNOWN_PATHS else "other"
            self.service.metrics.requests.labels(route, str(message["status"])).inc()
        await self.send(message)


_KNOWN_PATHS = frozenset(route.path for route in ROUTES)
