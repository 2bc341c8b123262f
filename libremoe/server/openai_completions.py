"""POST /v1/completions: texts or token ids, continued as they are. Evaluation harnesses score with echo and
logprobs."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from libremoe.engine.sequence import Logprob
from libremoe.errors import LibremoeError
from libremoe.server.body import read_body
from libremoe.server.errors import invalid
from libremoe.server.generate import Answer, Job, params_from, start
from libremoe.server.openai_chat import on_error, sampling, stops, usage
from libremoe.server.schema import CompletionRequest
from libremoe.server.service import Service
from libremoe.server.sse import EventStream, event, unless_gone

DEFAULT_MAX_TOKENS = 16  # as in the OpenAI API
MAX_ANSWERS = 256


async def completions(request: Request) -> Response:
    service: Service = request.app.state.service
    body = await read_body(request, CompletionRequest, service.settings)
    service.check_model(body.model)
    jobs = await _jobs(service, body)
    generation = await start(service, jobs, request.state.key)
    head = {"id": f"cmpl-{uuid.uuid4().hex[:24]}", "object": "text_completion", "created": int(time.time()),
            "model": service.model_id, "system_fingerprint": service.fingerprint}
    if body.stream:
        return EventStream(service, _events(service, body, jobs, generation, head), on_error)
    answers = await unless_gone(service, request, generation.collect())
    choices = [_choice(service, body, jobs[i // jobs[0].n], i, answer) for i, answer in enumerate(answers)]
    return JSONResponse({**head, "choices": choices, "usage": usage(generation)})


async def _jobs(service: Service, body: CompletionRequest) -> list[Job]:
    if body.suffix:
        raise invalid("suffix is not offered: this model continues texts, it does not fill gaps", "suffix")
    if body.best_of is not None and body.best_of != (body.n or 1):
        raise invalid("best_of is not offered: ask for n answers and choose", "best_of")
    prompts = await _prompts(service, body)
    n = body.n or 1
    if len(prompts) * n > MAX_ANSWERS:
        raise invalid(f"{len(prompts)} prompts times n = {n} are more than {MAX_ANSWERS} answers", "n")
    jobs = []
    for ids in prompts:
        service.check_ids(ids, "prompt")
        nothing = body.max_tokens == 0
        if nothing and not body.echo:
            raise invalid("max_tokens 0 makes sense with echo only", "max_tokens")
        max_tokens = 0 if nothing else service.max_tokens(body.max_tokens, len(ids), DEFAULT_MAX_TOKENS)
        if nothing and not 0 < len(ids) <= service.context_len:
            service.max_tokens(1, len(ids), 1)  # says what is wrong
        params = params_from(stop=stops(body.stop), max_tokens=max_tokens, logprobs=body.logprobs, **sampling(body))
        jobs.append(Job(ids, params, n, prompt_logprobs=body.logprobs if body.echo else None))
    return jobs


async def _prompts(service: Service, body: CompletionRequest) -> list[list[int]]:
    prompt: Any = body.prompt
    if isinstance(prompt, str) or isinstance(prompt[0], int):
        prompt = [prompt]
    try:
        return [await service.encode(p) if isinstance(p, str) else list(p) for p in prompt]
    except LibremoeError as error:
        raise invalid(str(error), "prompt") from error


def _choice(service: Service, body: CompletionRequest, job: Job, index: int, answer: Answer) -> dict[str, Any]:
    text, tokens = answer.text, _paired(answer.tokens)
    if body.echo:
        text = _decode(service, job.ids) + text
        tokens = _prompt_tokens(job, answer.prompt_logprobs) + tokens
    return {
        "index": index, "text": text, "finish_reason": answer.finish_reason,
        "logprobs": _logprobs(service, tokens) if body.logprobs is not None else None,
    }


def _paired(tokens: Sequence[Logprob]) -> list[tuple[int, Logprob | None]]:
    return [(entry.token, entry) for entry in tokens]


def _decode(service: Service, ids: Sequence[int]) -> str:
    return service.tokenizer.decode([i for i in ids if i < service.tokenizer.vocab_size])


def _prompt_tokens(job: Job, found: tuple[Logprob | None, ...] | None) -> list[tuple[int, Logprob | None]]:
    """Ids of the prompt with their log-probabilities; the first has none, for nothing is before it."""
    return list(zip(job.ids, found, strict=True)) if found else []


def _logprobs(service: Service, tokens: Sequence[tuple[int, Logprob | None]], offset: int = 0) -> dict[str, Any]:
    """OpenAI's old form. The token itself is among its alternatives, as harnesses expect."""
    out: dict[str, list[Any]] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
    for token, entry in tokens:
        text = service.token_text(token)
        out["tokens"].append(text)
        out["text_offset"].append(offset)
        out["token_logprobs"].append(None if entry is None else entry.logprob)
        top = None if entry is None else {service.token_text(t): p for t, p in entry.top} | {text: entry.logprob}
        out["top_logprobs"].append(top)
        offset += len(text)
    return out


async def _events(service: Service, body: CompletionRequest, jobs: list[Job], generation: Any,
                  head: dict[str, Any]) -> AsyncGenerator[bytes]:
    with_usage = body.stream_options is not None and bool(body.stream_options.include_usage)
    if with_usage:
        head = {**head, "usage": None}
    offsets = [0] * len(generation.choices)
    begun = [False] * len(generation.choices)
    async with generation, aclosing(generation.__aiter__()) as pieces:
        async for piece in pieces:
            i, text, tokens = piece.index, piece.text, _paired(piece.tokens)
            if body.echo and not begun[i]:
                job = jobs[i // jobs[0].n]
                text, tokens = _decode(service, job.ids) + text, _prompt_tokens(job, piece.prompt_logprobs) + tokens
            begun[i] = True
            logprobs = _logprobs(service, tokens, offsets[i]) if tokens else None
            offsets[i] += sum(len(service.token_text(token)) for token, _ in tokens)
            choice = {"index": i, "text": text, "logprobs": logprobs,
                      "finish_reason": piece.finish_reason}
            yield event({**head, "choices": [choice]})
        if with_usage:
            yield event({**head, "choices": [], "usage": usage(generation)})
        yield event("[DONE]")
