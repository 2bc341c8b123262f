"""What the page's routes work with: conversations, personas, sources, tools, and the answers on their way."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from libremoe.chat.persona import Persona
from libremoe.errors import LibremoeError
from libremoe.server.answers import Answers
from libremoe.server.errors import ApiError, invalid
from libremoe.server.service import Service

if TYPE_CHECKING:
    from libremoe.chat.folder import Belongings
    from libremoe.chat.store import Store
    from libremoe.chat.tool_box import ToolBox

Endpoint = Callable[[Request], Awaitable[Response]]

log = logging.getLogger(__name__)


@dataclass
class Chat:
    """One person's conversations with the served model. live, tools: None where there are none."""

    store: Store
    personas: Mapping[str, Persona]
    live: Any = None  # libremoe.live.Live
    tools: ToolBox | None = None
    live_allowed: bool = False  # by the person who started the server
    n_layers: int = 0
    n_experts: int = 0
    family: str = ""
    random_weights: bool = False
    counters: Callable[[], dict[str, float]] | None = None  # of streamed experts
    folder: Path | None = None  # where it is kept; None: in memory
    belongings: Belongings | None = None  # what the tools are made from, once the loop runs
    answers: Answers = field(default_factory=Answers)
    _refresher: asyncio.Task[None] | None = None

    def persona(self, name: str) -> Persona:
        """Raises ApiError 400 where there is none of this name."""
        if name not in self.personas:
            raise invalid(f"there is no persona {name!r}; there are {', '.join(self.personas)}", "persona")
        return self.personas[name]

    async def start(self) -> None:
        """Start what needs an event loop: MCP servers (one that does not start is said in the log and left out), and
        the reading of feeds now and then, where live sources were allowed."""
        if self.tools is None and self.belongings is not None:
            self.tools, notes = await self.belongings.tools()
            for note in notes:
                log.warning("%s", note)
        if self.live is not None and self.live_allowed and self.belongings is not None:
            self._refresher = asyncio.create_task(self._refresh())

    async def _refresh(self) -> None:
        try:
            await self.live.refresher()
        except LibremoeError as error:
            log.warning("feeds are no longer read by themselves: %s", error)

    async def close(self) -> None:
        """Answers are stopped and saved, tools and the store closed."""
        await self.answers.close()
        if self._refresher is not None:
            self._refresher.cancel()
            await asyncio.wait({self._refresher})
        if self.tools is not None:
            await self.tools.close()
        await asyncio.to_thread(self.store.close)
        if self.live is not None:
            await asyncio.to_thread(self.live.close)


def route(path: str, **endpoints: Endpoint) -> Route:
    """route("/api/x", GET=read, DELETE=erase): one route a path, so that a 405 names all the methods there are."""

    async def endpoint(request: Request) -> Response:
        return await endpoints["GET" if request.method == "HEAD" else request.method](request)

    return Route(path, endpoint, methods=list(endpoints))


def chat_of(request: Request) -> Chat:
    """Raises ApiError 404 where the server was started without."""
    service: Service = request.app.state.service
    if service.chat is None:
        raise ApiError(404, "this server keeps no conversations: it was started with --no-page")
    return service.chat


def plain(value: Any) -> Any:
    """A value of live's for JSON; one that is a dict already stays as it is."""
    return value.as_dict() if hasattr(value, "as_dict") else value


def render(text: str, sources: Sequence[Mapping[str, Any]] = (), sentences: Sequence[Mapping[str, Any]] = ()) -> str:
    """Markdown as safe HTML."""
    from libremoe.chat.markdown import render as markdown

    return markdown(text, sources, sentences)
