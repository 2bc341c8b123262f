"""The engine in its own thread, and its outputs as async iterators, so that an event loop never waits for the model.

    engine = ThreadedEngine(Engine(model))
    async with await engine.stream(prompt_ids, params) as outputs:   # refusals are raised by the await
        async for output in outputs:
            ...
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from types import TracebackType
from typing import TYPE_CHECKING, TypeVar

import torch

from libremoe.engine.engine import Engine, Stats
from libremoe.engine.sequence import Constraint, FinishReason, Output, Sequence
from libremoe.errors import LibremoeError

if TYPE_CHECKING:
    from libremoe.sampling import SamplingParams

T = TypeVar("T")


class Closing(LibremoeError):
    """The engine takes no more requests: it is draining or closed."""


class Stream(AsyncIterator[Output]):
    """Outputs of one sequence, the last one with a finish_reason. Leaving `async with`, or aclose(), cancels the rest."""

    sequence: Sequence

    def cancel(self, reason: FinishReason = "cancelled") -> None:
        """End the sequence within one step; never blocks. Its last Output still comes."""
        raise RuntimeError

    async def __anext__(self) -> Output:
        raise RuntimeError

    async def aclose(self) -> None:
        """Cancel the sequence if it has not ended, and forget what was not read."""
        raise RuntimeError

    async def __aenter__(self) -> Stream:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None,
                        traceback: TracebackType | None) -> None:
        await self.aclose()


class ThreadedEngine:
    """Owns an Engine: from here on only this thread steps it. All methods are called from event loops unless said."""

    def __init__(self, engine: Engine, *, max_buffered: int = 4096):
        """Starts the thread. max_buffered: outputs that a reader may leave unread before its sequence is cancelled."""
        raise RuntimeError

    async def stream(
        self,
        prompt: list[int],
        params: SamplingParams | None = None,
        *,
        constraint: Constraint | None = None,
        prompt_logprobs: int | None = None,
        deadline_s: float | None = None,
    ) -> Stream:
        """Queue a request. Raises at once what Engine.add raises (LibremoeError, QueueFull), and Closing; never waits
        for a step. constraint is called in the engine's thread."""
        raise RuntimeError

    async def embed(self, tokens: list[int]) -> torch.Tensor:
        """Engine.embed between two steps: (D,) float32. Raises LibremoeError, QueueFull, Closing."""
        raise RuntimeError

    async def call(self, work: Callable[[Engine], T]) -> T:
        """Run work(engine) in the engine's thread between two steps; what it raises is raised here."""
        raise RuntimeError

    def stats(self) -> Stats:
        """From any thread; never waits for a step."""
        raise RuntimeError

    async def drain(self, timeout_s: float) -> bool:
        """For SIGTERM: take no more requests, let the present ones end, cancel those left after timeout_s, and close.

        True where all ended by themselves.
        """
        raise RuntimeError

    def close(self) -> None:
        """Cancel everything and end the thread, from any thread; returns when the step under way has ended."""
        raise RuntimeError
