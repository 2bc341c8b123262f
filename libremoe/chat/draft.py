"""An answer on its way into the store: what was written so far, saved as it grows, and how it ended."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from libremoe.chat.conversation import State, Turn
from libremoe.chat.events import Event, Experts, Written
from libremoe.chat.message import Part

SAVE_EVERY_S = 1.0


class Store(Protocol):
    def update(self, turn_id: str, parts: Sequence[Part] | None = None, state: State | None = None,
               details: dict[str, Any] | None = None) -> Turn: ...


@dataclass
class Atlas:
    """How often each expert of each layer worked on an answer: counts[layer][expert]."""

    n_experts: int
    counts: list[list[int]] = field(default_factory=list)

    def add(self, layers: Sequence[Sequence[int]]) -> None:
        self.counts = self.counts or [[0] * self.n_experts for _ in layers]
        for row, chosen in zip(self.counts, layers, strict=True):
            for e in chosen:
                row[e] += 1


class Draft:
    """The turn of an answer that is being written. prefix: text that it begins with, where it goes on with one."""

    def __init__(self, store: Store, turn: Turn, prefix: str, n_experts: int):
        self.store, self.turn = store, turn
        self.written = Written(prefix)
        self.written.details |= {k: v for k, v in turn.details.items() if k == "sources"}
        self.atlas = Atlas(n_experts)
        self._saved = time.monotonic()

    def add(self, event: Event) -> None:
        self.written.add(event)
        if isinstance(event, Experts) and self.atlas.n_experts:
            self.atlas.add(event.layers)

    async def keep(self) -> None:
        """Save it, where that was not done a moment ago."""
        if time.monotonic() - self._saved >= SAVE_EVERY_S:
            await asyncio.to_thread(self.store.update, self.turn.id, tuple(self.written.parts))
            self._saved = time.monotonic()

    async def finish(self, state: State, error: str | None) -> Turn:
        """Save all of it, with how it ended."""
        details = self.turn.details | self.written.details
        details.pop("error", None)
        if error is not None:
            details["error"] = error
        if self.atlas.counts:
            details["atlas"] = self.atlas.counts
        if state == "stopped":
            details["finish_reason"] = "stopped"
        self.turn = await asyncio.to_thread(self.store.update, self.turn.id, tuple(self.written.parts), state, details)
        return self.turn
