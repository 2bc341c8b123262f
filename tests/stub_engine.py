"""An engine that is no engine: ThreadedEngine's methods, and tokens at a fixed rate, for tests of the server alone.

`max_running` sequences get a token each tick; the others wait. It runs in the event loop itself.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter, deque

import torch

from libremoe.engine.engine import Stats
from libremoe.engine.sequence import Output, QueueFull, Sequence
from libremoe.engine.threaded import DELIVERED_AT_ONCE, Closing
from libremoe.errors import LibremoeError
from libremoe.sampling import SamplingParams

TEXT = b" the quick brown fox jumps over the lazy dog"  # said again and again
FIRST_BYTE_ID = 4  # of tiny.byte_tokenizer's special tokens come four first


class StubStream:
    """What ThreadedEngine.stream gives, for one sequence of the stub."""

    def __init__(self, engine: StubEngine, sequence: Sequence):
        self.engine, self.sequence = engine, sequence
        self.outputs: deque[Output] = deque()
        self.arrived = asyncio.Event()
        self.ended = False

    def put(self, output: Output) -> None:
        if not self.ended:
            self.outputs.append(output)
            self.ended = output.finish_reason is not None
            self.arrived.set()

    def cancel(self, reason: str = "cancelled") -> None:
        self.engine.end(self, reason)

    def __aiter__(self) -> StubStream:
        return self

    async def __anext__(self) -> Output:
        while not self.outputs:
            if self.ended:
                raise StopAsyncIteration
            self.arrived.clear()
            await self.arrived.wait()
        return self.outputs.popleft()

    async def aclose(self) -> None:
        self.engine.end(self, "cancelled")
        self.outputs.clear()


class StubEngine:
    """tokens_per_s: of each running sequence. fail_on: a prompt with this token id fails at its second token."""

    def __init__(self, *, tokens_per_s: float = 200.0, max_running: int = 16, max_waiting: int = 256,
                 context_len: int = 512, prefill_s: float = 0.0, fail_on: int | None = None):
        self.tick_s, self.max_running, self.max_waiting = 1 / tokens_per_s, max_running, max_waiting
        self.context_len, self.prefill_s, self.fail_on = context_len, prefill_s, fail_on
        self.text = [FIRST_BYTE_ID + byte for byte in TEXT]
        self.waiting: deque[StubStream] = deque()
        self.running: list[StubStream] = []
        self.ids = itertools.count(1)
        self.closing = False
        self.finished: Counter[str] = Counter()
        self.generated = self.steps = 0
        self.task: asyncio.Task[None] | None = None

    async def stream(self, prompt: list[int], params: SamplingParams | None = None, *, constraint=None,
                     prompt_logprobs: int | None = None, deadline_s: float | None = None,
                     report_experts: bool = False) -> StubStream:
        self.check_room()
        params = params or SamplingParams()
        max_tokens = params.max_tokens if params.max_tokens is not None else 16
        if not prompt or len(prompt) + max_tokens > self.context_len:
            raise LibremoeError(f"{len(prompt)} and {max_tokens} tokens do not fit into {self.context_len}")
        deadline = None if deadline_s is None else time.monotonic() + deadline_s
        stream = StubStream(
            self, Sequence(next(self.ids), prompt, params, max_tokens, constraint, prompt_logprobs, deadline)
        )
        self.waiting.append(stream)
        if self.task is None or self.task.done():
            self.task = asyncio.get_running_loop().create_task(self.run())
        return stream

    def check_room(self) -> None:
        if self.closing:
            raise Closing("the engine is shutting down")
        if len(self.waiting) >= self.max_waiting:
            raise QueueFull(f"{len(self.waiting)} requests wait already", 1.0)

    async def run(self) -> None:
        due = time.monotonic()
        while self.waiting or self.running:
            due = max(due + self.tick_s, time.monotonic() - 0.1)
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            await self.step()

    async def step(self) -> None:
        self.steps += 1
        now = time.monotonic()
        for stream in list(self.waiting):
            if stream.sequence.deadline is not None and now > stream.sequence.deadline:
                self.end(stream, "deadline", "waited too long")
        while self.waiting and len(self.running) < self.max_running:
            stream = self.waiting.popleft()
            stream.sequence.arrived = now  # from here on: when it began to run
            self.running.append(stream)
        for n, stream in enumerate(list(self.running), 1):
            if stream in self.running and now - stream.sequence.arrived >= self.prefill_s:
                self.token(stream)
            if n % DELIVERED_AT_ONCE == 0:
                await asyncio.sleep(0)  # as ThreadedEngine does

    def token(self, stream: StubStream) -> None:
        seq = stream.sequence
        if self.fail_on in seq.prompt_ids and seq.output_ids:
            self.end(stream, "error", "the stub was told to fail")
            return
        token = self.text[len(seq.output_ids) % len(self.text)]
        if seq.constraint is not None:
            try:
                mask = seq.constraint.mask()
                token = token if mask is None or mask[token] else int(mask.nonzero()[0])
                seq.constraint.accept(token)
            except LibremoeError as error:
                self.end(stream, "error", str(error))
                return
        seq.output_ids.append(token)
        self.generated += 1
        n = seq.params.logprobs
        top = tuple((token + i, -1.0 - i) for i in range(n or 0))
        last = len(seq.output_ids) >= seq.max_tokens
        if last:
            self.running.remove(stream)
            self.finished["length"] += 1
        stream.put(Output(seq.id, token, None if n is None else -1.0, top, "length" if last else None))

    def end(self, stream: StubStream, reason: str, error: str | None = None) -> None:
        if stream in self.running:
            self.running.remove(stream)
        elif stream in self.waiting:
            self.waiting.remove(stream)
        else:
            return
        self.finished[reason] += 1
        stream.put(Output(stream.sequence.id, finish_reason=reason, error=error))

    async def embed(self, tokens: list[int]) -> torch.Tensor:
        return torch.tensor([float(len(tokens)), 1.0, 0.0, -1.0])

    def stats(self) -> Stats:
        return Stats(
            waiting=len(self.waiting),
            waiting_tokens=0,
            running=len(self.running),
            blocks=self.max_running,
            blocks_used=len(self.running),
            blocks_cached=0,
            prefix_lookup_tokens=0,
            prefix_hit_tokens=0,
            prompt_tokens=0,
            generated_tokens=self.generated,
            preemptions=0,
            steps=self.steps,
            finished=dict(self.finished),
            tokens_per_s=0.0,
        )

    async def drain(self, timeout_s: float) -> bool:
        self.closing = True
        end = time.monotonic() + timeout_s
        while (self.waiting or self.running) and time.monotonic() < end:
            await asyncio.sleep(0.01)
        ended = not self.waiting and not self.running
        self.close()
        return ended

    def close(self) -> None:
        self.closing = True
        for stream in [*self.waiting, *self.running]:
            self.end(stream, "cancelled")
