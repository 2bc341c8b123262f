"""The routes that generate nothing: health, metrics, models, tokens and embeddings."""

from __future__ import annotations

import asyncio
import base64
import struct
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from libremoe.errors import LibremoeError
from libremoe.server.body import read_body
from libremoe.server.errors import ApiError, invalid
from libremoe.server.generate import refusal
from libremoe.server.schema import DetokenizeRequest, EmbeddingsRequest, TokenizeRequest
from libremoe.server.service import Service
from libremoe.server.sse import unless_gone


async def health(request: Request) -> Response:
    service: Service = request.app.state.service
    if service.draining:
        raise ApiError(503, "the server is shutting down", code="draining", retry_after_s=10)
    return JSONResponse({"status": "ok"})


async def metrics(request: Request) -> Response:
    service: Service = request.app.state.service
    return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


def _card(service: Service) -> dict[str, Any]:
    return {"id": service.model_id, "object": "model", "created": service.created, "owned_by": "libremoe",
            "max_model_len": service.context_len}


async def models(request: Request) -> Response:
    return JSONResponse({"object": "list", "data": [_card(request.app.state.service)]})


async def model(request: Request) -> Response:
    service: Service = request.app.state.service
    service.check_model(request.path_params["name"])
    return JSONResponse(_card(service))


async def tokenize(request: Request) -> Response:
    service: Service = request.app.state.service
    body = await read_body(request, TokenizeRequest, service.settings)
    given = [text for text in (body.text, body.prompt, body.content) if text is not None]
    if len(given) != 1:
        raise invalid("give the text in one field: text, prompt or content", "text")
    try:
        ids = await service.encode(given[0])
    except LibremoeError as error:
        raise invalid(str(error), "text") from error
    if body.add_special_tokens is False and service.bos_id is not None:
        ids = ids[1:]
    return JSONResponse({"tokens": ids, "count": len(ids), "max_model_len": service.context_len})


async def detokenize(request: Request) -> Response:
    service: Service = request.app.state.service
    body = await read_body(request, DetokenizeRequest, service.settings)
    try:
        text = await asyncio.to_thread(service.tokenizer.decode, body.tokens)
    except LibremoeError as error:
        raise invalid(str(error), "tokens") from error
    return JSONResponse({"text": text, "prompt": text, "content": text})


async def tokenizer_info(request: Request) -> Response:
    """What lm-eval asks before it leaves tokenising to a server. Special tokens have ids and no text: whatever is sent
    to /tokenize stays text, so their spelling would come back as other tokens."""
    service: Service = request.app.state.service
    return JSONResponse({"tokenizer_class": "libremoe", "vocab_size": service.vocab_size, "bos_token": None,
                         "eos_token": None, "bos_token_id": service.tokenizer.bos_id, "eos_token_id": service.eos_id})


async def embeddings(request: Request) -> Response:
    """The mean over the tokens of the model's last hidden state. Grok-1 was not trained to make embeddings."""
    service: Service = request.app.state.service
    body = await read_body(request, EmbeddingsRequest, service.settings)
    service.check_model(body.model)
    inputs: Any = body.input
    if isinstance(inputs, str) or isinstance(inputs[0], int):
        inputs = [inputs]
    try:
        all_ids = [await service.encode(each) if isinstance(each, str) else each for each in inputs]
    except LibremoeError as error:
        raise invalid(str(error), "input") from error
    for ids in all_ids:
        service.check_ids(ids, "input")
        if not 0 < len(ids) <= service.context_len:
            raise invalid(f"a text has {len(ids)} tokens; it must have 1 to {service.context_len}", "input")
    total = sum(len(ids) for ids in all_ids)
    service.access.take_tokens(request.state.key, total)
    rows = await unless_gone(service, request, _embed(service, all_ids))
    if body.dimensions is not None and body.dimensions != len(rows[0]):
        raise invalid(f"this model's embeddings have {len(rows[0])} dimensions, no other number", "dimensions")
    data = [{"object": "embedding", "index": i, "embedding": _encoded(row, body.encoding_format)}
            for i, row in enumerate(rows)]
    return JSONResponse({"object": "list", "data": data, "model": service.model_id,
                         "usage": {"prompt_tokens": total, "total_tokens": total}})


async def _embed(service: Service, all_ids: list[list[int]]) -> list[list[float]]:
    try:
        return [(await service.engine.embed(ids)).tolist() for ids in all_ids]
    except LibremoeError as error:
        raise refusal(error) from error


def _encoded(row: list[float], format: str | None) -> list[float] | str:
    if format == "base64":  # little-endian float32
        return base64.b64encode(struct.pack(f"<{len(row)}f", *row)).decode()
    return row
