"""/openapi.json, made from the schemas that requests are checked against, and a page that shows it. Nothing is fetched
from elsewhere: the page is this file's HTML, with its style and no script."""

from __future__ import annotations

import html
import json
import re
from functools import cache
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response

from libremoe.server import chat_schema, schema

JSON, SSE = "application/json", "text/event-stream"
POSTS: dict[str, tuple[str, type[BaseModel], bool]] = {  # path: (summary, body, may stream)
    "/v1/chat/completions": ("Answer a conversation (OpenAI)", schema.ChatRequest, True),
    "/v1/completions": ("Continue texts or token ids (OpenAI)", schema.CompletionRequest, True),
    "/v1/responses": ("Answer a conversation (OpenAI Responses)", schema.ResponsesRequest, True),
    "/v1/messages": ("Answer a conversation (Anthropic)", schema.MessagesRequest, True),
    "/v1/messages/count_tokens": ("Count a conversation's tokens (Anthropic)", schema.CountTokensRequest, False),
    "/v1/embeddings": ("Mean of the last hidden state (OpenAI)", schema.EmbeddingsRequest, False),
    "/tokenize": ("Text to token ids", schema.TokenizeRequest, False),
    "/detokenize": ("Token ids to text", schema.DetokenizeRequest, False),
}
GETS = {
    "/health": ("Whether the server takes requests; needs no key", "application/json"),
    "/metrics": ("Counters for Prometheus", "text/plain"),
    "/v1/models": ("The model that is served", "application/json"),
    "/v1/models/{name}": ("The model, by its name", "application/json"),
    "/tokenizer_info": ("The ids of special tokens", "application/json"),
    "/openapi.json": ("This document", "application/json"),
    "/": ("The page; without it, this document", "text/html"),
    "/docs": ("This document as a page", "text/html"),
}
# The page's: (method, path, summary, body, media type of the answer)
CHAT: list[tuple[str, str, str, type[BaseModel] | None, str]] = [
    ("get", "/api/state", "What is served, and what can be used with it", None, JSON),
    ("get", "/api/conversations", "All conversations, and where a query is found", None, JSON),
    ("post", "/api/conversations", "Begin a conversation", chat_schema.NewConversation, JSON),
    ("delete", "/api/conversations", "Erase all conversations", None, JSON),
    ("get", "/api/conversations/{id}", "A conversation with all its turns", None, JSON),
    ("patch", "/api/conversations/{id}", "Rename it, change its persona, select a branch",
     chat_schema.ChangeConversation, JSON),
    ("delete", "/api/conversations/{id}", "Erase it", None, JSON),
    ("post", "/api/conversations/{id}/turns", "Say something and follow the answer", chat_schema.NewTurn, SSE),
    ("post", "/api/conversations/{id}/regenerate", "Another answer", chat_schema.AnotherAnswer, SSE),
    ("post", "/api/conversations/{id}/continue", "Go on with an answer", chat_schema.AnotherAnswer, SSE),
    ("get", "/api/conversations/{id}/export", "As a file: ?format=markdown, json or html", None,
     "application/octet-stream"),
    ("get", "/api/turns/{id}/events", "Follow an answer that is being written", None, SSE),
    ("post", "/api/turns/{id}/stop", "Stop an answer", None, JSON),
    ("post", "/api/turns/{id}/approve", "Allow a tool call, or refuse it", chat_schema.Decision, JSON),
    ("post", "/api/import", "Import an exported file", None, JSON),
    ("get", "/prompts", "The system prompts, with their history", None, JSON),
    ("get", "/api/ledger", "What left this machine", None, JSON),
    ("get", "/api/sources", "Sources of live answers", None, JSON),
    ("post", "/api/sources", "Add a source", chat_schema.NewSource, JSON),
    ("delete", "/api/sources/{name}", "Remove a source", None, JSON),
    ("post", "/api/code", "Complete, explain, test or change code", chat_schema.CodeRequest, JSON),
    ("post", "/api/offline", "Let nothing leave this machine, or let it", chat_schema.Offline, JSON),
]
ERRORS = {
    "400": "a field is wrong; the message names it",
    "401": "a key is needed",
    "403": "not with this key, or from there",
    "404": "no such model",
    "408": "the body came too slowly",
    "413": "the body is too long",
    "415": "not JSON",
    "429": "a quota is used up; see Retry-After",
    "500": "the answer failed",
    "503": "the queue is full, or the server is shutting down; see Retry-After",
}


@cache
def document() -> dict[str, Any]:
    """OpenAPI 3.1: https://spec.openapis.org/oas/v3.1.0"""
    bodies = [body for _, body, _ in POSTS.values()] + [body for *_, body, _ in CHAT if body is not None]
    _, definitions = models_json_schema([(body, "validation") for body in dict.fromkeys(bodies)],
                                        ref_template="#/components/schemas/{model}")
    anything = {"schema": {"type": "object"}}
    errors = {
        status: {"description": text, "content": {"application/json": anything}} for status, text in ERRORS.items()
    }
    paths: dict[str, Any] = {}
    for path, (summary, body, streams) in POSTS.items():
        content = {"application/json": anything} | (
            {"text/event-stream": {"schema": {"type": "string"}}} if streams else {}
        )
        ref = {"$ref": f"#/components/schemas/{body.__name__}"}
        paths[path] = {"post": {
            "summary": summary, "operationId": path.strip("/").replace("/", "_"), "security": [{"key": []}],
            "requestBody": {"required": True, "content": {"application/json": {"schema": ref}}},
            "responses": {"200": {"description": "the answer", "content": content}} | errors,
        }}
    for path, (summary, media_type) in GETS.items():
        paths[path] = {"get": {
            "summary": summary, "security": [] if path == "/health" else [{"key": []}],
            "responses": {"200": {"description": "the answer", "content": {media_type: {}}}} | errors,
        }}
    for method, path, summary, chat_body, media_type in CHAT:
        paths.setdefault(path, {})[method] = _operation(method, path, summary, chat_body, media_type) | {
            "responses": {"200": {"description": "the answer", "content": {media_type: {}}}} | errors}
    paths["/v1/models/{name}"]["get"]["parameters"] = [
        {"name": "name", "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}]
    return {
        "openapi": "3.1.0",
        "info": {"title": "libremoe", "version": "1", "description": "One engine, and the APIs that clients know."},
        "paths": paths,
        "components": {
            "schemas": definitions["$defs"],
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


def _operation(method: str, path: str, summary: str, body: type[BaseModel] | None, media_type: str) -> dict[str, Any]:
    operation: dict[str, Any] = {"summary": summary, "security": [{"key": []}],
                                 "operationId": f"{method}{re.sub('[^a-z]+', '_', path).rstrip('_')}"}
    if names := re.findall(r"{(\w+)}", path):
        operation["parameters"] = [{"name": name, "in": "path", "required": True,
                                    "schema": {"type": "string", "minLength": 1}} for name in names]
    if body is not None:
        ref = {"$ref": f"#/components/schemas/{body.__name__}"}
        operation["requestBody"] = {"required": True, "content": {JSON: {"schema": ref}}}
    return operation


async def openapi_json(request: Request) -> Response:
    return JSONResponse(document())


_STYLE = (":root{color-scheme:light dark}"
          "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}"
          "pre{background:#8881;padding:.6rem;overflow:auto}summary{cursor:pointer}"
          "code{font-weight:600;overflow-wrap:anywhere}")


async def page(request: Request) -> Response:
    service = request.app.state.service
    policy = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"
    return HTMLResponse(_page(service.model_id), headers={"Content-Security-Policy": policy})


def _page(model_id: str) -> str:
    found = document()
    parts = ["<!doctype html><html lang=en><meta charset=utf-8>",
             f"<meta name=viewport content='width=device-width'><title>libremoe</title><style>{_STYLE}</style>",
             f"<h1>libremoe</h1><p>Serves <code>{html.escape(model_id)}</code>. The same in ",
             '<a href="/openapi.json">OpenAPI</a>.</p>']
    for path, methods in found["paths"].items():
        for method, operation in methods.items():
            parts.append(
                f"<p><code>{method.upper()} {html.escape(path)}</code> {html.escape(operation['summary'])}</p>"
            )
            if path in POSTS:
                fields = json.dumps(found["components"]["schemas"][POSTS[path][1].__name__]["properties"], indent=1)
                parts.append(f"<details><summary>fields</summary><pre>{html.escape(fields)}</pre></details>")
    return "".join(parts) + "</html>"
