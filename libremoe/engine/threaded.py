"""The engine in its own thread, its outputs as async iterators, so that an event loop never waits for the model.

    engine = ThreadedEngine(Engine(model))
    async with await engine.stream(prompt_ids, params) as outputs:   # refusals are raised by the await
        async for output in outputs:
            ...
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from types import TracebackType
from typing import TypeVar

import torch

from libremoe.engine.engine import Engine, Stats
from libremoe.engine.sequence import Constraint, FinishReason, Output, QueueFull, Sequence
from libremoe.errors import LibremoeError
from libremoe.sampling import SamplingParams

T = TypeVar("T")
MAX_CALLS = 256  # embeddings and other calls that may wait between two steps
DELIVERED_AT_ONCE = 32  # outputs in one turn of an event loop; each wakes a task, and all else waits for these

log = logging.getLogger(__name__)


class Closing(LibremoeError):
    """The engine takes no more requests: it is draining or closed."""


class Stream(AsyncIterator[Output]):
    """Outputs of one sequence, the last one with a finish_reason. Leaving `async with`, or aclose(), cancels the rest.

    Belongs to the event loop in which it was made. ThreadedEngine.stream makes it.
    """

    def __init__(self, engine: Engine, max_buffered: int):
        self.sequence: Sequence  # set once the engine has taken the request
        self.loop = asyncio.get_running_loop()
        self._engine, self._max_buffered = engine, max_buffered
        self._unread: deque[Output] = deque()
        self._arrived = asyncio.Event()
        self._ended = False  # the last output is in the buffer, or was read

    def cancel(self, reason: FinishReason = "cancelled") -> None:
        """End the sequence within one step; never blocks. Its last Output still comes."""
        self._engine.cancel(self.sequence, reason)

    def deliver(self, output: Output) -> None:
        """Called in the stream's loop, once for each output."""
        if self._ended:
            return
        self._unread.append(output)
        self._ended = output.finish_reason is not None
        self._arrived.set()
        if len(self._unread) > self._max_buffered:
            self.cancel()

    async def __anext__(self) -> Output:
        while not self._unread:
            if self._ended:
                raise StopAsyncIteration
            self._arrived.clear()
            await self._arrived.wait()
        return self._unread.popleft()

    async def aclose(self) -> None:
        """Cancel the sequence if it has not ended, and forget what was not read."""
        if not self._ended:
            self.cancel()
        self._ended = True
        self._unread.clear()
        self._arrived.set()

    async def __aenter__(self) -> Stream:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None,
                        traceback: TracebackType | None) -> None:
        await self.aclose()


class ThreadedEngine:
    """Owns an Engine: from here on only this thread steps it. All methods are called from event loops unless said."""

    def __init__(self, engine: Engine, *, max_buffered: int = 4096):
        """Starts the thread. max_buffered: outputs that a reader may leave unread before its sequence is cancelled."""
        self._engine, self._max_buffered = engine, max_buffered
        self._streams: dict[int, Stream] = {}  # by sequence id
        self._mail: dict[asyncio.AbstractEventLoop, _Mail] = {}  # used by the engine's thread alone
        self._calls: deque[tuple[Callable[[Engine], object], Future]] = deque()
        self._wake = threading.Condition()  # guards the two above and the two flags below
        self._draining = False
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="libremoe engine", daemon=True)
        self._thread.start()

    async def stream(
        self,
        prompt: list[int],
        params: SamplingParams | None = None,
        *,
        constraint: Constraint | None = None,
        prompt_logprobs: int | None = None,
        deadline_s: float | None = None,
        report_experts: bool = False,
    ) -> Stream:
        """Queue a request; constraint is called in the engine's thread.

        Raises at once what Engine.add raises (LibremoeError, QueueFull), and Closing; never waits for a step.
        """
        stream = Stream(self._engine, self._max_buffered)
        with self._wake:  # until the stream is known, the thread must not hand out its outputs
            self._check_open()
            stream.sequence = self._engine.add(prompt, params, constraint=constraint, prompt_logprobs=prompt_logprobs,
                                               deadline_s=deadline_s, report_experts=report_experts)
            self._streams[stream.sequence.id] = stream
            self._wake.notify()
        return stream

    def check_room(self) -> None:
        """Raises QueueFull or Closing where stream() would refuse whatever is asked; never waits for a step."""
        self._check_open()
        self._engine.check_room()

    async def embed(self, tokens: list[int]) -> torch.Tensor:
        """Engine.embed between two steps: (D,) float32. Raises LibremoeError, QueueFull, Closing."""
        return await self.call(lambda engine: engine.embed(tokens))

    async def call(self, work: Callable[[Engine], T]) -> T:
        """Run work(engine) in the engine's thread between two steps; what it raises is raised here.

        Raises QueueFull where too many calls wait, and Closing.
        """
        future: Future = Future()
        with self._wake:
            self._check_open()
            if len(self._calls) >= MAX_CALLS:
                raise QueueFull(f"the queue is full: {len(self._calls)} calls wait, {MAX_CALLS} may", 1.0)
            self._calls.append((work, future))
            self._wake.notify()
        return await asyncio.wrap_future(future)

    def stats(self) -> Stats:
        """From any thread; never waits for a step."""
        return self._engine.stats()

    async def drain(self, timeout_s: float) -> bool:
        """For SIGTERM: take no more requests, let the present ones end, cancel those left after timeout_s, and close.

        True where all ended by themselves.
        """
        with self._wake:
            self._draining = True
        loop = asyncio.get_running_loop()
        end = loop.time() + timeout_s
        while self._busy() and loop.time() < end:
            await asyncio.sleep(0.02)
        ended = not self._busy()
        await asyncio.to_thread(self.close)
        return ended

    def close(self) -> None:
        """Cancel everything and end the thread, from any thread; returns when the step under way has ended."""
        with self._wake:
            self._draining = self._closed = True
            self._wake.notify()
        self._thread.join()

    def _busy(self) -> bool:
        with self._wake:
            return bool(self._streams or self._calls)

    def _check_open(self) -> None:
        if self._draining:
            raise Closing("the engine is shutting down and takes no more requests")

    def _run(self) -> None:
        """The thread: calls, then a step, for as long as there is either."""
        while True:
            with self._wake:
                while not (self._closed or self._calls or self._engine.has_work()):
                    self._wake.wait()
                if self._closed:
                    break
                calls, self._calls = self._calls, deque()
            for work, future in calls:
                self._answer(work, future)
            if self._engine.has_work():
                self._deliver(self._step())
        self._deliver(self._engine.abort("the engine was closed", "cancelled"))
        for _, future in self._calls:
            if future.set_running_or_notify_cancel():
                future.set_exception(Closing("the engine was closed"))

    def _step(self) -> list[Output]:
        try:
            return self._engine.step()
        except Exception:  # a defect of ours: those at work end with an error, the server lives on
            log.exception("a step of the engine failed")
            return self._engine.abort("the engine failed on this step; the request can be sent again")

    def _answer(self, work: Callable[[Engine], object], future: Future) -> None:
        if not future.set_running_or_notify_cancel():
            return
        try:
            future.set_result(work(self._engine))
        except Exception as error:  # handed to whoever asked
            future.set_exception(error)

    def _deliver(self, outputs: list[Output]) -> None:
        """Hand outputs to their streams, waking each event loop once."""
        by_loop: dict[asyncio.AbstractEventLoop, list[tuple[Stream, Output]]] = {}
        with self._wake:
            for output in outputs:
                stream = self._streams.get(output.seq_id)
                if stream is None:
                    continue
                by_loop.setdefault(stream.loop, []).append((stream, output))
                if output.finish_reason is not None:
                    del self._streams[output.seq_id]
        for loop, pairs in by_loop.items():
            mail = self._mail.setdefault(loop, _Mail(loop))
            try:
                loop.call_soon_threadsafe(mail.add, pairs)
            except RuntimeError:  # the loop was closed while its streams were open: nobody reads them
                del self._mail[loop]
                for stream, _ in pairs:
                    stream.cancel()


class _Mail:
    """Outputs on their way to the streams of one event loop, in order, a few in each of its turns."""

    def __init__(self, loop: asyncio.AbstractEventLoop):
        self._loop = loop
        self._pairs: deque[tuple[Stream, Output]] = deque()

    def add(self, pairs: list[tuple[Stream, Output]]) -> None:
        """Called in the loop."""
        idle = not self._pairs
        self._pairs.extend(pairs)
        if idle:
            self._deliver()

    def _deliver(self) -> None:
        for _ in range(min(DELIVERED_AT_ONCE, len(self._pairs))):
            stream, output = self._pairs.popleft()
            stream.deliver(output)
        if self._pairs:
            self._loop.call_soon(self._deliver)
