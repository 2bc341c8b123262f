"""Answers on their way: each is a task of its own, written into the store as it grows, followed by whoever looks.

A page that closes its stream stops nothing: the answer goes on, is kept, and can be followed again. It ends when the
model ends it, when a person stops it, when its time is over, or when the server shuts down.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import asdict
from typing import Any

from libremoe.chat.conversation import State, Turn, turn_as_dict
from libremoe.chat.draft import Draft, Store
from libremoe.chat.events import CallAsked, CallDone, Event, Experts, Finished, Searching, Sources, TextDelta
from libremoe.chat.message import ToolCall
from libremoe.errors import LibremoeError
from libremoe.server.errors import ApiError

MAX_OPEN = 32  # answers at once; each is a request to the engine, which has a queue of its own
RENDER_EVERY_S = 0.1
RENDER_SHARE = 4  # rendering takes at most one part in so many of an answer's time
SHUTDOWN_S = 5.0
RETRY_S = 5.0

log = logging.getLogger(__name__)
Render = Callable[[str, Sequence[Mapping[str, Any]], Sequence[Mapping[str, Any]]], str]


class OpenAnswer:
    """One answer. `log` is what happened so far, as values of JSON; the latest rendering stands beside it."""

    def __init__(self, store: Store, turn: Turn, prefix: str, render: Render, n_experts: int, allowed: set[str]):
        """allowed: names of tools that the person has allowed for this conversation; answers add to it."""
        self.draft = Draft(store, turn, prefix, n_experts)
        self.render, self.allowed = render, allowed
        self.log: list[dict[str, Any]] = []
        self.html: str | None = None
        self._rendered_text = ""
        self.done = asyncio.Event()
        self._renderings = 0
        self._news = asyncio.Event()
        self._waiting: dict[str, tuple[CallAsked, asyncio.Future[bool]]] = {}
        self._task: asyncio.Task[None] | None = None  # never cancelled by us: it saves
        self._work: asyncio.Task[None] | None = None  # cancelled by stop()
        self._rendered = time.monotonic()
        self._stopped = False

    @property
    def turn(self) -> Turn:
        return self.draft.turn

    def begin(self, events: AsyncIterator[Event], when_done: Callable[[], object]) -> None:
        self._task = asyncio.create_task(self._run(events))
        self._task.add_done_callback(lambda _: when_done())

    def stop(self) -> None:
        """End it now; what was written is kept."""
        self._stopped = True
        if self._work is not None:
            self._work.cancel()

    async def ended(self) -> None:
        """Wait until it has ended and is saved."""
        await self.done.wait()

    def decide(self, call_id: str, allow: bool, always: bool) -> bool:
        """The person's word on a call that waits for it; False where none waits."""
        asked, future = self._waiting.pop(call_id, (None, None))
        if future is None or asked is None or future.done():
            return False
        if allow and always:
            self.allowed.add(asked.call.name)
        future.set_result(allow)
        return True

    async def approve(self, asked: CallAsked) -> bool:
        """Asks the person, unless this tool was allowed for the conversation and the call is not suspect."""
        if asked.approval == "ask" and asked.call.name in self.allowed:
            return True
        future: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._waiting[asked.call.id] = asked, future
        self._say({"type": "approve", "call": call_as_dict(asked.call), "always": asked.approval == "ask"})
        try:
            return await future
        finally:
            self._waiting.pop(asked.call.id, None)

    async def follow(self) -> AsyncGenerator[dict[str, Any]]:
        """Everything from its beginning to its end; a rendering that was overtaken is left out."""
        at = renderings = 0
        while True:
            news, ended = self._news, self.done.is_set()
            while at < len(self.log):
                yield self.log[at]
                at += 1
                if renderings != self._renderings and self.html is not None and not ended:
                    renderings = self._renderings
                    yield {"type": "html", "html": self.html}
            if renderings != self._renderings and self.html is not None and not ended:
                renderings = self._renderings
                yield {"type": "html", "html": self.html}
            if ended and at == len(self.log):
                return
            if news is self._news and not ended:
                await news.wait()

    def _say(self, event: dict[str, Any]) -> None:
        self.log.append(event)
        self._wake()

    def _wake(self) -> None:
        news, self._news = self._news, asyncio.Event()
        news.set()

    async def _run(self, events: AsyncIterator[Event]) -> None:
        state: State = "done"
        error: str | None = None
        try:
            self._work = asyncio.create_task(self._consume(events))
            if self._stopped:
                self._work.cancel()
            await self._work
        except asyncio.CancelledError:
            state = "stopped"
        except LibremoeError as refusal:
            state, error = "failed", str(refusal)
        except Exception:  # this answer's failure, not the server's
            log.exception("an answer failed")
            state, error = "failed", "the server failed at this answer; its log says how"
        try:
            await self._finish(state, error)
        except Exception:
            log.exception("an answer could not be saved")
            self._say({"type": "error", "message": "the answer could not be saved; the server's log says why"})
        finally:
            self.done.set()
            self._wake()

    async def _consume(self, events: AsyncIterator[Event]) -> None:
        async with aclosing(events) as more:  # type: ignore[type-var]
            async for event in more:
                self.draft.add(event)
                self._tell(event)
                await self._keep()

    def _tell(self, event: Event) -> None:
        if isinstance(event, TextDelta):
            self._say({"type": "delta", "text": event.text})
        elif isinstance(event, Searching):
            self._say({"type": "searching", "query": event.query})
        elif isinstance(event, Sources):
            self._say({"type": "sources", "sources": list(event.sources)})
        elif isinstance(event, CallAsked):
            self._say({"type": "call", "call": call_as_dict(event.call), "approval": event.approval})
        elif isinstance(event, CallDone):
            self._say({"type": "call_done", "call_id": event.result.call_id, "name": event.name, "ok": event.ok,
                       "text": event.result.text, "seconds": round(event.seconds, 3)})
        elif isinstance(event, Experts):
            self._say({"type": "experts", "token": event.token, "layers": event.layers, "text": event.text})
        elif isinstance(event, Finished) and "stats" in event.details:
            self._say({"type": "stats", **event.details["stats"]})

    async def _keep(self) -> None:
        """Render and save, now and then."""
        now = time.monotonic()
        if now >= self._rendered and (text := self.draft.written.text) and text != self._rendered_text:
            self.html = await asyncio.to_thread(self.render, text, self._sources(), [])
            self._rendered_text = text
            self._renderings += 1
            took = time.monotonic() - now
            self._rendered = now + max(RENDER_EVERY_S, RENDER_SHARE * took)
            self._wake()
        await self.draft.keep()

    def _sources(self) -> list[dict[str, Any]]:
        return self.draft.written.details.get("sources", [])

    async def _finish(self, state: State, error: str | None) -> None:
        turn = await self.draft.finish(state, error)
        if error is not None:
            self._say({"type": "error", "message": error})
        shown = await asyncio.to_thread(self.render, self.draft.written.text, self._sources(),
                                        turn.details.get("sentences", []))
        self._say({"type": "done", "turn": turn_as_dict(turn) | {"html": shown}})


def call_as_dict(call: ToolCall) -> dict[str, str]:
    return asdict(call)


class Answers:
    """The open ones, by the id of their turn."""

    def __init__(self, max_open: int = MAX_OPEN) -> None:
        self.max_open = max_open
        self.open: dict[str, OpenAnswer] = {}
        self.allowed: dict[str, set[str]] = {}  # by conversation: tools that the person allowed
        self.closing = False

    def check_room(self) -> None:
        """Raises ApiError 503 where no more may begin."""
        if self.closing:
            raise ApiError(503, "the server is shutting down", code="draining", retry_after_s=RETRY_S)
        if len(self.open) >= self.max_open:
            said = f"{len(self.open)} answers are being written, {self.max_open} may be: stop one, or wait"
            raise ApiError(503, said, code="queue_full", retry_after_s=RETRY_S)

    def begin(self, answer: OpenAnswer, events: AsyncIterator[Event]) -> None:
        self.open[answer.turn.id] = answer
        answer.begin(events, lambda: self.open.pop(answer.turn.id, None))

    def of_conversation(self, conversation_id: str) -> list[OpenAnswer]:
        return [a for a in self.open.values() if a.turn.conversation_id == conversation_id]

    async def close(self) -> None:
        """Stop all, and wait until what they have written is saved."""
        self.closing = True
        answers = list(self.open.values())
        for answer in answers:
            answer.stop()
        if answers:
            await asyncio.wait([asyncio.ensure_future(a.ended()) for a in answers], timeout=SHUTDOWN_S)
