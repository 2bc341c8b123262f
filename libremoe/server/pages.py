"""The page at /: files of this package, a policy that lets it load nothing else, and the login where keys are on.

A browser logs in once with a key and gets a cookie that no script can read; the cookie opens the page's own routes and
nothing else. Files are read once, at the first request.
"""

from __future__ import annotations

import html
from functools import cache
from hashlib import sha256
from pathlib import Path
from urllib.parse import parse_qs

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Route
from starlette.types import Scope

from libremoe.server.body import read_bytes
from libremoe.server.chat_state import route
from libremoe.server.errors import ApiError, language_of
from libremoe.server.logins import LOGIN_S
from libremoe.server.openapi import page as fields_page
from libremoe.server.service import Service

FOLDER = Path(__file__).parent / "web"
TYPES = {".css": "text/css", ".html": "text/html", ".js": "text/javascript", ".svg": "image/svg+xml"}
# Everything from here, no script or style in the HTML itself, no plain text made HTML but by the page's one gate.
POLICY = ("default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
          "form-action 'self'; base-uri 'none'; frame-ancestors 'none'; "
          "require-trusted-types-for 'script'; trusted-types libremoe")
LOGIN_POLICY = ("default-src 'none'; style-src 'self'; img-src data:; form-action 'self'; base-uri 'none'; "
                "frame-ancestors 'none'")
PAGE_HEADERS = {
    "Cache-Control": "no-cache",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
    "Referrer-Policy": "same-origin",  # with less, a browser sends Origin: null with our own login form
}
OPEN_PATHS = frozenset({"/login", "/login/style.css"})
COOKIE = "libremoe"
COOKIE_PATHS = ("/web/", "/api/")  # with "/", /prompts and /logout, all that a cookie opens
MAX_LOGIN_BYTES = 4096


def secret_of(service: Service, scope: Scope, headers: Headers) -> str | None:
    """The key of a page's request, by its cookie. What changes something must say that it comes from here: the guards
    have refused other origins before, so that any origin is ours."""
    path = scope["path"]
    if path not in ("/", "/prompts", "/logout") and not path.startswith(COOKIE_PATHS):
        return None
    ours = "origin" in headers or headers.get("sec-fetch-site") == "same-origin"
    if scope["method"] not in ("GET", "HEAD") and not ours:
        return None
    cookie = Request(scope).cookies.get(COOKIE)
    return service.logins.secret(cookie) if cookie else None


@cache
def _file(name: str) -> tuple[bytes, str, str] | None:
    """Content, type and ETag; None where the page has no such file."""
    if name not in {path.name for path in FOLDER.iterdir()}:
        return None
    path = FOLDER / name
    if path.suffix not in TYPES:
        return None
    content = path.read_bytes()
    return content, f"{TYPES[path.suffix]}; charset=utf-8", f'"{sha256(content).hexdigest()[:32]}"'


def _answer(request: Request, name: str, policy: str = POLICY) -> Response:
    found = _file(name)
    if found is None:
        raise ApiError(404, "the page has no such file")
    content, media_type, etag = found
    headers = PAGE_HEADERS | {"ETag": etag, "Content-Security-Policy": policy}
    if request.headers.get("if-none-match") == etag:
        return Response(status_code=304, headers=headers)
    return Response(content, media_type=media_type, headers=headers)


async def index(request: Request) -> Response:
    """The page; where the server was started without, what the API takes."""
    service: Service = request.app.state.service
    return _answer(request, "index.html") if service.chat is not None else await fields_page(request)


async def file(request: Request) -> Response:
    return _answer(request, request.path_params["name"])


async def login_style(request: Request) -> Response:
    return _answer(request, "style.css", LOGIN_POLICY)


async def login_form(request: Request) -> Response:
    return login_page(language_of(request.headers), failed=False, status=200)


async def log_in(request: Request) -> Response:
    service: Service = request.app.state.service
    body = await read_bytes(request, MAX_LOGIN_BYTES, service.settings.body_timeout_s)
    fields = parse_qs(body.decode("utf-8", "replace"), max_num_fields=8)
    secret = fields.get("key", [""])[0].strip()
    try:
        key = service.access.key_for(secret)
    except ApiError as error:
        if error.status != 401:
            raise
        return login_page(language_of(request.headers), failed=True)
    answer = RedirectResponse("/", 303)
    if key is not None:
        answer.set_cookie(COOKIE, service.logins.begin(secret), max_age=LOGIN_S, path="/", httponly=True,
                          samesite="strict", secure=request.url.scheme == "https")
    return answer


async def log_out(request: Request) -> Response:
    service: Service = request.app.state.service
    if cookie := request.cookies.get(COOKIE):
        service.logins.end(cookie)
    answer = RedirectResponse("/login", 303)
    answer.delete_cookie(COOKIE, path="/", httponly=True, samesite="strict")
    return answer


LOGIN_WORDS = {
    "en": ("Log in", "This server asks for a key. Its owner makes one with", "Key", "This key is not known here."),
    "fr": ("Se connecter", "Ce serveur demande une clé. Son propriétaire en crée une avec", "Clé",
           "Cette clé n’est pas connue ici."),
}


def login_page(language: str, failed: bool, status: int = 401) -> Response:
    title, text, label, wrong = map(html.escape, LOGIN_WORDS[language])
    alert = f'<p role="alert" class="login-wrong">{wrong}</p>' if failed else ""
    content = (
        f'<!doctype html><html lang="{language}"><head><meta charset="utf-8"><title>{title} – libremoe</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<link rel="icon" href="data:,"><link rel="stylesheet" href="/login/style.css"></head>'
        f'<body class="login"><main><h1>libremoe</h1><p>{text} <code>libremoe keys add</code></p>{alert}'
        f'<form method="post" action="/login"><label class="stack">{label}'
        '<input type="password" name="key" required autofocus autocomplete="current-password" maxlength="512"></label>'
        f'<button class="primary wide" type="submit">{title}</button></form></main></body></html>')
    headers = PAGE_HEADERS | {"Cache-Control": "no-store", "Content-Security-Policy": LOGIN_POLICY}
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return HTMLResponse(content, status, headers=headers)


ROUTES = [
    Route("/", index, methods=["GET"]),
    Route("/web/{name}", file, methods=["GET"]),
    Route("/login/style.css", login_style, methods=["GET"]),
    route("/login", GET=login_form, POST=log_in),
    Route("/logout", log_out, methods=["POST"]),
]
