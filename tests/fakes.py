"""Models that are functions, and sources without a network, for tests of a session."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from libremoe.chat.events import Ended, Experts, Request, TextDelta
from libremoe.chat.message import Text, ToolCall
from libremoe.live.values import Excerpt, Findings

Says = Callable[[Request], Sequence[str | ToolCall]]


@dataclass
class FakeModel:
    """Says what a function of the request says. A token is a word. requests: all that it was asked."""

    says: Says
    context_len: int = 4000
    name: str = "fake"
    requests: list[Request] = field(default_factory=list)

    async def count(self, request: Request) -> int:
        return len(read(request).split())

    async def stream(self, request: Request) -> AsyncGenerator[TextDelta | ToolCall | Experts | Ended]:
        self.requests.append(request)
        said = self.says(request)
        for i, part in enumerate(said):
            yield Experts(i, ((i % 8, 7),), part if isinstance(part, str) else "")
            yield TextDelta(part) if isinstance(part, str) else part
        calls = any(isinstance(part, ToolCall) for part in said)
        stats = {"tokens": len(said), "first_token_s": 0.1, "seconds": 0.2}
        yield Ended("tool_calls" if calls else "stop", stats, "fake")


def read(request: Request) -> str:
    """All that the model sees, as one text."""
    lines = [f"{t.name}: {t.description}" for t in request.tools]
    for message in request.messages:
        lines += [f"{message.role}: {part.text}" for part in message.parts if not isinstance(part, ToolCall)]
    return "\n".join([*lines, request.prefix])


def words(text: str) -> Says:
    """A model that says this, word by word."""
    return lambda request: [word if i == 0 else " " + word for i, word in enumerate(text.split(" "))]


def excerpt(number: int, text: str, title: str = "Page", **fields: Any) -> Excerpt:
    sha256 = hashlib.sha256(text.encode()).hexdigest()
    return Excerpt(**{"number": number, "title": title, "url": f"https://example.org/{number}", "source": "test",
                      "kind": "page", "published": None, "fetched": 1e9, "text": text, "snapshot_sha256": sha256,
                      "start": 0, "end": len(text)} | fields)


@dataclass
class FakeLive:
    """Finds the same for every question. asked: the questions. opened: the pages that were asked for."""

    excerpts: list[Excerpt] = field(default_factory=list)
    fresh: bool = True
    asked: list[str] = field(default_factory=list)
    opened: list[str] = field(default_factory=list)

    async def gather(self, question: str, language: str = "en", deadline_s: float = 10.0, tag: str = "") -> Findings:
        self.asked.append(question)
        return Findings(list(self.excerpts), [], self.fresh)

    async def open_page(self, url: str) -> Any:
        self.opened.append(url)
        raise AssertionError(f"nobody may open {url}")


def text_of(parts: Sequence[Any]) -> str:
    return "".join(part.text for part in parts if isinstance(part, Text))
