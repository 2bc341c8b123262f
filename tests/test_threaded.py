"""The engine behind an event loop: streams arrive, leaving cancels, errors and shutdown reach all, nothing blocks."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any

import pytest
import tiny
import torch

from libremoe.batch import Batch, KVCache
from libremoe.engine.engine import Engine
from libremoe.engine.sequence import Output, QueueFull
from libremoe.engine.threaded import Closing, Stream, ThreadedEngine
from libremoe.errors import LibremoeError
from libremoe.sampling import SamplingParams

ENDLESS = SamplingParams(temperature=0, max_tokens=400, ignore_eos=True)
SHORT = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
PATIENCE_S = 60.0  # a test that hangs fails after this; none is expected to come near it


class SteppedModel(tiny.CountingModel):
    """Each forward pass waits for `go`, so that a test decides what happens during a step."""

    def __init__(self) -> None:
        super().__init__()
        self.go = threading.Semaphore(0)
        self.began = threading.Semaphore(0)

    def __call__(self, tokens_N: torch.Tensor, batch: Batch, kv: KVCache | None = None) -> torch.Tensor:
        self.began.release()
        if not self.go.acquire(timeout=PATIENCE_S):
            raise RuntimeError("the test never let this step go")
        return super().__call__(tokens_N, batch, kv)


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(work, PATIENCE_S))


async def collect(stream: Stream) -> list[Output]:
    async with stream:
        return [output async for output in stream]


async def until_empty(threaded: ThreadedEngine) -> None:
    while (stats := threaded.stats()).running or stats.waiting or stats.blocks_used:
        await asyncio.sleep(0.001)


def test_many_streams_at_once_each_get_their_own_tokens():
    async def work() -> None:
        model = tiny.CountingModel()
        threaded = ThreadedEngine(Engine(model, n_blocks=32))
        streams = [await threaded.stream([5, i], SHORT) for i in range(40)]
        answers = await asyncio.gather(*map(collect, streams))
        for i, outputs in enumerate(answers):
            assert [output.token for output in outputs] == model.continuation([5, i], 12)
            assert [output.finish_reason for output in outputs] == [None] * 11 + ["length"]
        assert await threaded.drain(PATIENCE_S)

    run(work())


def test_leaving_a_stream_frees_its_blocks_and_ends_no_other():
    async def work() -> None:
        model = tiny.CountingModel()
        threaded = ThreadedEngine(Engine(model, n_blocks=64))
        stayer = asyncio.create_task(collect(await threaded.stream([9], SHORT)))
        leavers = [await threaded.stream([5, i], ENDLESS) for i in range(10)]
        for n, stream in enumerate(leavers):
            async with stream:
                for _ in range(n % 3):
                    await anext(stream)
        await until_empty(threaded)
        assert {stream.sequence.finish_reason for stream in leavers} == {"cancelled"}
        assert [output.token for output in await stayer] == model.continuation([9], 12)
        with pytest.raises(StopAsyncIteration):
            await anext(leavers[0])
        threaded.close()

    run(work())


def test_a_cancelled_task_cancels_its_sequence_within_a_step():
    async def work() -> None:
        model = SteppedModel()
        threaded = ThreadedEngine(Engine(model, n_blocks=8))
        stream = await threaded.stream([5], ENDLESS)
        reader = asyncio.create_task(collect(stream))
        await asyncio.to_thread(model.began.acquire)
        await asyncio.sleep(0)  # the reader waits for its first output now
        reader.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reader
        model.go.release()  # only the step under way
        await until_empty(threaded)
        assert stream.sequence.finish_reason == "cancelled"
        assert len(stream.sequence.output_ids) == 1
        threaded.close()

    run(work())


def test_the_event_loop_is_free_while_a_step_runs():
    async def work() -> None:
        model = SteppedModel()
        threaded = ThreadedEngine(Engine(model, n_blocks=8, max_running=1, max_waiting=2))
        first = await threaded.stream([5], SHORT)
        await asyncio.to_thread(model.began.acquire)
        # All of this happens during one step that has not ended.
        waiting = [await threaded.stream([6, i], SHORT) for i in range(2)]
        with pytest.raises(QueueFull):
            await threaded.stream([7], SHORT)
        with pytest.raises(LibremoeError, match="empty"):
            await threaded.stream([], SHORT)
        assert (threaded.stats().running, threaded.stats().waiting) == (1, 2)
        await waiting[0].aclose()
        assert model.computed == 0
        for _ in range(100):
            model.go.release()
        assert len(await collect(first)) == len(await collect(waiting[1])) == 12
        threaded.close()

    run(work())


def test_a_reader_that_falls_far_behind_is_cancelled():
    async def work() -> None:
        threaded = ThreadedEngine(Engine(tiny.CountingModel(), n_blocks=8), max_buffered=10)
        stream = await threaded.stream([5], ENDLESS)
        await until_empty(threaded)
        outputs = await collect(stream)
        assert outputs[-1].finish_reason == "cancelled"
        assert 10 < len(outputs) < 400
        threaded.close()

    run(work())


def test_a_step_that_fails_ends_those_at_work_and_the_engine_lives_on(monkeypatch):
    async def work() -> None:
        model = tiny.CountingModel()
        engine = Engine(model, n_blocks=8)
        whole = engine.scheduler.commit
        monkeypatch.setattr(engine.scheduler, "commit", lambda results: 1 // 0)
        threaded = ThreadedEngine(engine)
        outputs = await collect(await threaded.stream([5], SHORT))
        assert [output.finish_reason for output in outputs] == ["error"]
        monkeypatch.setattr(engine.scheduler, "commit", whole)
        outputs = await collect(await threaded.stream([5], SHORT))
        assert [output.token for output in outputs] == model.continuation([5], 12)
        threaded.close()

    run(work())


def test_embeddings_and_calls_run_between_steps_and_give_their_errors_back():
    async def work() -> None:
        threaded = ThreadedEngine(Engine(tiny.CountingModel(), n_blocks=8))
        stream = await threaded.stream([5], ENDLESS)
        assert float((await threaded.embed([4, 6]))[0]) == 5.0
        with pytest.raises(LibremoeError, match="empty"):
            await threaded.embed([])
        with pytest.raises(ZeroDivisionError):
            await threaded.call(lambda engine: 1 // 0)
        name = await threaded.call(lambda engine: threading.current_thread().name)
        assert name == "libremoe engine"
        assert len(await collect(stream)) == 400
        threaded.close()

    run(work())


def test_drain_lets_the_present_requests_end_and_takes_no_more():
    async def work() -> None:
        threaded = ThreadedEngine(Engine(tiny.CountingModel(), n_blocks=32))
        readers = [asyncio.create_task(collect(await threaded.stream([5, i], SHORT))) for i in range(20)]
        draining = asyncio.create_task(threaded.drain(PATIENCE_S))
        await asyncio.sleep(0)
        with pytest.raises(Closing):
            await threaded.stream([6], SHORT)
        with pytest.raises(Closing):
            await threaded.embed([6])
        assert await draining
        assert {outputs[-1].finish_reason for outputs in await asyncio.gather(*readers)} == {"length"}

    run(work())


def test_drain_cancels_what_outlasts_its_time():
    async def work() -> None:
        model = SteppedModel()
        threaded = ThreadedEngine(Engine(model, n_blocks=8))
        reader = asyncio.create_task(collect(await threaded.stream([5], ENDLESS)))
        call = asyncio.create_task(threaded.embed([5]))
        await asyncio.to_thread(model.began.acquire)
        draining = asyncio.create_task(threaded.drain(0.0))
        while not draining.done():  # a step may begin before the cancellation arrives, and waits for its turn too
            model.go.release()
            await asyncio.sleep(0.01)
        assert not draining.result()
        assert (await reader)[-1].finish_reason == "cancelled"
        await asyncio.gather(call, return_exceptions=True)
        threaded.close()  # a second time does no harm

    run(work())


def test_a_thousand_readers_that_leave_at_random_leak_no_block():
    async def work() -> None:
        engine = Engine(tiny.CountingModel(), n_blocks=24, max_waiting=2000, max_waiting_tokens=1 << 20)
        threaded = ThreadedEngine(engine)

        async def visit(i: int) -> None:
            stream = await threaded.stream([5 + i % 90] * (1 + i % 100), SHORT)
            async with stream:
                for _ in range(i % 5):
                    if (await anext(stream)).finish_reason:
                        return

        await asyncio.gather(*(visit(i) for i in range(1000)))
        await until_empty(threaded)
        threaded.close()
        tiny.assert_empty(engine)
        assert sum(engine.stats().finished.values()) == 1000

    run(work())
