"""The page in Debian's Chromium, over the real server: for tests of it, and for the pictures of the README.

    with served_page(says=words("Hello")) as running, browser() as chromium, chromium.new_page() as page: ...

The model is a function (fakes.py) where a test must know what is said, and a tiny real one elsewhere.
"""

from __future__ import annotations

import asyncio
import shutil
import threading
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from fakes import FakeLive, FakeModel, Says
from serving import Running, chatting, served, stub

from libremoe.chat.events import Ended, Experts, Request, TextDelta
from libremoe.chat.message import ToolCall
from libremoe.server import chat_api

CHROMIUM = shutil.which("chromium") or "/usr/bin/chromium"
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update",
    "--disable-sync",
         "--disable-default-apps", "--disable-extensions", "--no-first-run", "--mute-audio", "--disable-dev-shm-usage",
         "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost"]
WAIT_MS = 30_000  # nothing in the tests takes so long, however busy the machine
DESK, PHONE = {"width": 1280, "height": 800}, {"width": 390, "height": 844}
N_LAYERS, N_EXPERTS = 12, 8

needs_chromium = pytest.mark.skipif(not Path(CHROMIUM).exists(), reason="there is no /usr/bin/chromium (apt: chromium)")


@dataclass
class Paced(FakeModel):
    """A FakeModel that takes its time: pause_s before each word, and experts of every layer for it."""

    pause_s: float = 0.0
    stats: dict[str, Any] = field(default_factory=dict)

    async def stream(self, request: Request) -> AsyncGenerator[TextDelta | ToolCall | Experts | Ended]:
        self.requests.append(request)
        said = self.says(request)
        for i, part in enumerate(said):
            await asyncio.sleep(self.pause_s)
            layers = tuple(tuple(sorted({(i * 3 + l * l) % 5, (i + l) % 8})) for l in range(N_LAYERS))
            if isinstance(part, str):
                yield Experts(i, layers, part)
                yield TextDelta(part)
            else:
                yield part
        calls = any(isinstance(part, ToolCall) for part in said)
        stats = {"tokens": len(said), "first_token_s": 0.31, "tokens_s": 11.4,
            "seconds": 0.31 + len(said) / 11.4} | self.stats
        yield Ended("tool_calls" if calls else "stop", stats, "fake")


class Names:
    """Sources as a live part lists them; adding and removing is noted."""

    def __init__(self) -> None:
        self.found: list[dict[str, Any]] = [{"name": "space-news", "kind": "feed",
            "url": "https://news.example/feed.xml"}]

    def list(self) -> list[dict[str, Any]]:
        return self.found

    def add(self, kind: str, name: str | None, **options: Any) -> dict[str, Any]:
        self.found.append({"name": name or options.get("url", ""), "kind": kind, **options})
        return self.found[-1]

    def remove(self, name: str) -> None:
        self.found = [one for one in self.found if one["name"] != name]


@dataclass
class PageLive(FakeLive):
    """FakeLive with what the settings show."""

    sources: Names = field(default_factory=Names)
    offline: bool = False
    ledger: Any = None
    sent: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.ledger = self

    async def add(self, url: str, kind: str | None, name: str | None, key_env: str, limit: float) -> dict[str, Any]:
        return self.sources.add(kind or "page", name, url=url)

    def close(self) -> None:
        pass

    def keep_offline(self, offline: bool) -> None:
        self.offline = offline

    def entries(self, limit: int) -> list[dict[str, Any]]:
        return self.sent[:limit]


@contextmanager
def served_page(says: Says | None = None, *, pause_s: float = 0.0, engine: Any = None, keys: Path | None = None,
                stats: dict[str, Any] | None = None, **fields: Any) -> Iterator[Running]:
    """The server with its page. says: what a model that is a function says; without it, engine (a stub) answers.
    fields: of Chat."""
    chat = chatting(**{"n_layers": N_LAYERS, "n_experts": N_EXPERTS, "live_allowed": True} | fields)
    before = chat_api.ServiceModel
    try:
        if says is not None:
            def model(*_: Any) -> Paced:
                return Paced(says, name="grok-tiny", pause_s=pause_s, stats=stats or {})

            chat_api.ServiceModel = model  # type: ignore[assignment, misc]
        with served(engine or stub(tokens_per_s=50), chat=chat, keys=keys) as running:
            yield running
    finally:
        chat_api.ServiceModel = before  # type: ignore[misc]


@contextmanager
def served_files(files: dict[str, tuple[str, str]]) -> Iterator[tuple[str, list[str]]]:
    """(address, paths that were asked for) of a server of these texts, by path: (type, text). Of "/" where it is not
    there."""
    asked: list[str] = []

    class Files(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            kind, text = files.get(self.path) or files.get("/") or ("text/plain", "")
            self.send_response(200 if text else 404)
            self.send_header("content-type", kind)
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Files)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", asked
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        try:
            yield chromium
        finally:
            chromium.close()


# Before the page's own scripts: what must never happen is written down.
WATCH = """
window.violations = [];
addEventListener("securitypolicyviolation",
    (e) => violations.push(`${e.violatedDirective} ${e.blockedURI} ${e.sample}`));
"""


@dataclass
class Watched:
    """A page, and all that it asked for, said on its console, or was refused."""

    page: Any
    url: str
    requests: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def offsite(self) -> list[str]:
        return [url for url in self.requests if not url.startswith((self.url + "/", "blob:", "data:,"))]

    def check(self) -> None:
        """Nothing ran that is not ours, nothing was asked for elsewhere, the policy had nothing to refuse."""
        ran, violations = self.page.evaluate("[window.ran ?? null, window.violations]")
        if ran is not None or violations or self.offsite() or self.errors:
            raise AssertionError((ran, violations, self.offsite(), self.errors))


@contextmanager
def open_page(chromium: Any, running: Running, path: str = "/", size: dict[str, int] | None = None, *,
    ready: bool = True,
              **options: Any) -> Iterator[Watched]:
    """A fresh profile. options: of Playwright's new_context, such as color_scheme and locale."""
    context = chromium.new_context(**{"viewport": size or DESK, "locale": "en-US",
        "reduced_motion": "reduce"} | options)
    context.set_default_timeout(WAIT_MS)
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    page = context.new_page()
    page.add_init_script(WATCH)
    watched = Watched(page, running.url)
    page.on("request", lambda request: watched.requests.append(request.url))
    page.on("pageerror", lambda error: watched.errors.append(str(error)))
    page.on("dialog", lambda dialog: (watched.errors.append(dialog.message), dialog.dismiss()))
    try:
        page.goto(running.url + path)
        if ready:
            page.wait_for_selector("html[data-ready=yes]")
        yield watched
    finally:
        context.close()


def ask(page: Any, text: str) -> None:
    """Write it, send it, and wait for the end of the answer."""
    before = page.locator("article.assistant").count()
    page.locator("#message").fill(text)
    page.keyboard.press("Enter")
    page.wait_for_function("n => document.querySelectorAll('article.assistant').length > n", arg=before)
    ended(page)


def ended(page: Any) -> None:
    page.wait_for_function("() => !document.querySelector('article.writing') && "
                           "document.querySelector('#send').dataset.busy === 'false'")
