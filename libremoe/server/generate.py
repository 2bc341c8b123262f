"""The one path from token ids to text: queue the sequences, decode their tokens, stop at stop strings, end them all.

    generation = await start(service, jobs, key)        # refusals are raised here, before anything was answered
    async with generation:
        async for piece in generation: ...              # a whole answer is these pieces, collected
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

from libremoe.chat.template import Trim
from libremoe.engine.sequence import Experts, Logprob, Output, QueueFull
from libremoe.engine.threaded import Closing
from libremoe.errors import LibremoeError
from libremoe.sampling import SamplingParams, StopChecker
from libremoe.server.errors import ApiError, invalid
from libremoe.server.keys import Key
from libremoe.server.service import Service

if TYPE_CHECKING:
    from libremoe.constrain import TokenConstraint
    from libremoe.engine.threaded import Stream

DRAIN_RETRY_S = 10.0
QUEUE_RETRY_S = 5.0
SEEDS = 1 << 64


@dataclass(frozen=True)
class Job:
    """A prompt to be answered n times. params.stop holds all stop strings; params.max_tokens is a number."""

    ids: list[int]
    params: SamplingParams
    n: int = 1
    constraints: list[TokenConstraint] | None = None  # one for each answer
    prompt_logprobs: int | None = None
    trim: bool = False  # white space around the answer is the transcript's, not the answer's
    continues: bool = False  # the prompt ends with the beginning of the answer: white space after it belongs to it
    experts: bool = False  # whether to report which experts worked


@dataclass(frozen=True)
class Piece:
    """What a token, or the end, added to one answer."""

    index: int  # of the answer: job by job, n each
    text: str = ""
    tokens: tuple[Logprob, ...] = ()
    finish_reason: Literal["stop", "length"] | None = None
    stop_text: str | None = None  # the stop string that ended it
    prompt_logprobs: tuple[Logprob | None, ...] | None = None  # with the first piece, where they were asked for
    experts: Experts | None = None  # of its token, where they were asked for


@dataclass
class Answer:
    """Pieces of one answer, collected."""

    text: str = ""
    tokens: list[Logprob] = field(default_factory=list)
    finish_reason: str | None = None
    stop_text: str | None = None
    prompt_logprobs: tuple[Logprob | None, ...] | None = None

    def add(self, piece: Piece) -> None:
        self.text += piece.text
        self.tokens += piece.tokens
        self.finish_reason = piece.finish_reason or self.finish_reason
        self.stop_text = piece.stop_text or self.stop_text
        self.prompt_logprobs = piece.prompt_logprobs or self.prompt_logprobs


def params_from(**fields: object) -> SamplingParams:
    """SamplingParams of the fields that were given. Raises ApiError 400 naming the field that is wrong."""
    given = {name: value for name, value in fields.items() if value is not None}
    try:
        return SamplingParams(**given)  # type: ignore[arg-type]
    except LibremoeError as error:
        name = str(error).split()[0].split("[")[0]
        raise invalid(str(error), name if name in fields else None) from error


async def start(service: Service, jobs: Sequence[Job], key: Key | None = None) -> Generation:
    """Queue all answers of all jobs, or none. Raises ApiError: 400 impossible, 429 quota, 503 full or draining."""
    worst = sum(job.n * (len(job.ids) + (job.params.max_tokens or 0)) for job in jobs)
    service.access.take_tokens(key, worst)
    choices: list[_Choice] = []
    arrived = time.monotonic()
    try:
        for job in jobs:
            for k in range(job.n):
                choices.append(await _queue(service, job, k, len(choices), arrived))
    except LibremoeError as error:
        await _close(choices)
        service.access.give_back(key, worst)
        raise refusal(error) from error
    except BaseException:
        await _close(choices)
        service.access.give_back(key, worst)
        raise
    return Generation(service, choices, sum(len(job.ids) for job in jobs), key, worst)


def refusal(error: LibremoeError) -> ApiError:
    """What the engine refuses, in HTTP's words."""
    if isinstance(error, QueueFull):
        return ApiError(503, str(error), code="queue_full", retry_after_s=error.retry_after_s)
    if isinstance(error, Closing):
        return ApiError(503, "the server is shutting down", code="draining", retry_after_s=DRAIN_RETRY_S)
    return invalid(str(error))


async def _queue(service: Service, job: Job, k: int, index: int, arrived: float) -> _Choice:
    params = job.params
    if params.seed is not None and k:
        params = replace(params, seed=(params.seed + k) % SEEDS)
    constraint = job.constraints[k] if job.constraints else None
    # The engine only ends sequences; stop strings and text are found here.
    stream = await service.engine.stream(
        job.ids, replace(params, stop=()), constraint=constraint, prompt_logprobs=job.prompt_logprobs,
        deadline_s=service.settings.queue_timeout_s, report_experts=job.experts)
    return _Choice(service, stream, index, params, constraint, job, arrived)


async def _close(choices: Sequence[_Choice]) -> None:
    for choice in choices:
        await choice.stream.aclose()


class Generation:
    """All answers to one request, as one stream of pieces. Leaving `async with` cancels what has not ended."""

    def __init__(self, service: Service, choices: list[_Choice], prompt_tokens: int, key: Key | None, charged: int):
        self.service = service
        self.choices = choices
        self.prompt_tokens = prompt_tokens
        self._key, self._charged = key, charged

    @property
    def completion_tokens(self) -> int:
        return sum(choice.num_tokens for choice in self.choices)

    @property
    def cached_tokens(self) -> int:
        """Prompt tokens that another sequence had computed."""
        return sum(choice.stream.sequence.num_shared for choice in self.choices)

    async def __aenter__(self) -> Generation:
        return self

    async def __aexit__(self, *_: object) -> None:
        await _close(self.choices)
        charged, self._charged = self._charged, 0
        used = self.prompt_tokens + self.completion_tokens
        self.service.access.give_back(self._key, charged - used)

    async def __aiter__(self) -> AsyncGenerator[Piece]:
        if len(self.choices) == 1:
            async with aclosing(self.choices[0].pieces()) as pieces:
                async for piece in pieces:
                    yield piece
            return
        async with aclosing(_merged(self.choices)) as pieces:
            async for piece in pieces:
                yield piece

    async def collect(self) -> list[Answer]:
        """Every answer, whole. Raises ApiError where one failed."""
        answers = [Answer() for _ in self.choices]
        async with self, aclosing(self.__aiter__()) as pieces:
            async for piece in pieces:
                answers[piece.index].add(piece)
        return answers


async def _merged(choices: Sequence[_Choice]) -> AsyncGenerator[Piece]:
    """Pieces of several answers in the order in which they come; the first failure ends all."""
    arrived: asyncio.Queue[Piece | BaseException | None] = asyncio.Queue(maxsize=64)

    async def follow(choice: _Choice) -> None:
        try:
            async for piece in choice.pieces():
                await arrived.put(piece)
            await arrived.put(None)
        except Exception as error:  # raised again by the reader below
            await arrived.put(error)

    tasks = [asyncio.create_task(follow(choice)) for choice in choices]
    try:
        left = len(tasks)
        while left:
            found = await arrived.get()
            if isinstance(found, BaseException):
                raise found
            if found is None:
                left -= 1
            else:
                yield found
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class _Choice:
    """One answer on its way."""

    def __init__(self, service: Service, stream: Stream, index: int, params: SamplingParams,
                 constraint: TokenConstraint | None, job: Job, arrived: float):
        self.service = service
        self.stream = stream
        self.index = index
        self.constraint = constraint
        self.wants_logprobs = params.logprobs is not None
        self.text = _TextFlow(service, params.stop, job.trim, started=job.continues)
        self.num_tokens = 0
        self.last = arrived

    async def pieces(self) -> AsyncGenerator[Piece]:
        async for output in self.stream:
            piece = self._piece(output)
            if piece.text or piece.tokens or piece.finish_reason or piece.prompt_logprobs or piece.experts:
                yield piece
            if piece.finish_reason:
                return
        raise ApiError(500, "the answer ended without a reason")

    def _piece(self, output: Output) -> Piece:
        if output.finish_reason in ("error", "cancelled", "deadline"):
            raise _failure(output)
        text, finish = "", output.finish_reason
        tokens: tuple[Logprob, ...] = ()
        if output.token is not None:
            self._measure()
            if finish != "stop":  # else it is the end-of-text id, which is no part of the text
                text = self.text.push(output.token)
                tokens = (Logprob(output.token, output.logprob or 0.0, output.top),) if self.wants_logprobs else ()
        if self.text.stop_text is not None or self._is_complete():
            finish = "stop"
            self.stream.cancel()
        if finish:
            text += self.text.finish(cut=finish == "stop")
        return Piece(self.index, text, tokens, "length" if finish == "length" else "stop" if finish else None,
                     self.text.stop_text, output.prompt_logprobs, output.experts)

    def _is_complete(self) -> bool:
        end = self.constraint.complete_at if self.constraint is not None else None
        return end is not None and self.num_tokens >= end

    def _measure(self) -> None:
        now = time.monotonic()
        metrics = self.service.metrics
        (metrics.between_tokens if self.num_tokens else metrics.first_token).observe(now - self.last)
        self.last = now
        self.num_tokens += 1


def _failure(output: Output) -> ApiError:
    if output.finish_reason == "deadline":
        return ApiError(503, output.error or "the request waited too long for its turn", code="queue_timeout",
                        retry_after_s=QUEUE_RETRY_S)
    if output.finish_reason == "cancelled":
        return ApiError(503, "the server ended this answer: it is shutting down, or the client read too slowly",
                        code="cancelled", retry_after_s=DRAIN_RETRY_S)
    return ApiError(500, f"this answer failed: {output.error or 'no reason was given'}", code="generation_failed")


class _TextFlow:
    """Tokens in, text that may be shown out: decoded, cut before stop strings, and trimmed where asked."""

    def __init__(self, service: Service, stops: tuple[str, ...], trim: bool, started: bool = False):
        self.decoder = service.tokenizer.stream_decoder()
        self.known = service.tokenizer.vocab_size  # a model may have more ids than its tokenizer
        self.checker = StopChecker(stops) if stops else None
        self.trim = Trim(started=started) if trim else None
        self.stop_text: str | None = None

    def push(self, token: int) -> str:
        return self._checked(self.decoder.push(token) if token < self.known else "")

    def finish(self, *, cut: bool) -> str:
        """cut: the answer ended by itself, so trailing white space goes."""
        if self.stop_text is not None:
            return ""
        text = self._checked(self.decoder.finish())
        if self.checker is not None and self.stop_text is None:
            text += self._trimmed(self.checker.finish())
        return text if cut or self.trim is None else text + self.trim.space

    def _checked(self, text: str) -> str:
        if self.checker is None:
            return self._trimmed(text)
        held = self.checker.held
        shown, stopped = self.checker.push(text)
        if stopped and self.stop_text is None:
            rest = (held + text)[len(shown) :]
            self.stop_text = max((s for s in self.checker.stops if rest.startswith(s)), key=len, default="")
        return self._trimmed(shown)

    def _trimmed(self, text: str) -> str:
        return text if self.trim is None else self.trim.push(text)
