"""What a client is told when something is wrong: one ApiError, written in the shape of the API that was called.

OpenAI: {"error": {"message", "type", "param", "code"}}; Anthropic: {"type": "error", "error": {"type", "message"}}.
Programs are told in English. The page's own API answers in the language that the page asks for.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from starlette.responses import JSONResponse, Response

from libremoe.french import translated

CHAT_PREFIX = "/api/"  # the page's own
ANTHROPIC_PREFIX = "/v1/messages"
OPENAI_TYPES = {
    400: "invalid_request_error", 401: "authentication_error", 403: "permission_error", 404: "not_found_error",
    405: "invalid_request_error", 408: "timeout_error", 413: "invalid_request_error", 415: "invalid_request_error",
    429: "rate_limit_error", 500: "server_error", 503: "server_overloaded",
}
ANTHROPIC_TYPES = {
    400: "invalid_request_error", 401: "authentication_error", 403: "permission_error", 404: "not_found_error",
    408: "timeout_error", 413: "request_too_large", 429: "rate_limit_error", 503: "overloaded_error",
}


class ApiError(Exception):
    """A refusal or a failure with its HTTP status. param: the field that is wrong. retry_after_s: for Retry-After."""

    def __init__(self, status: int, message: str, *, param: str | None = None, code: str | None = None,
                 retry_after_s: float | None = None, headers: dict[str, str] | None = None):
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.retry_after_s = retry_after_s
        self.headers = headers or {}
        super().__init__(message)


def invalid(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """400: the client's mistake."""
    return ApiError(400, message, param=param, code=code)


def openai_body(error: ApiError) -> dict[str, Any]:
    kind = OPENAI_TYPES.get(error.status, "server_error" if error.status >= 500 else "invalid_request_error")
    return {"error": {"message": error.message, "type": kind, "param": error.param, "code": error.code}}


def anthropic_body(error: ApiError) -> dict[str, Any]:
    kind = ANTHROPIC_TYPES.get(error.status, "api_error" if error.status >= 500 else "invalid_request_error")
    named = error.param is None or error.message.startswith(error.param)
    message = error.message if named else f"{error.param}: {error.message}"
    return {"type": "error", "error": {"type": kind, "message": message}}


def body_for(path: str, error: ApiError) -> dict[str, Any]:
    anthropic = path == ANTHROPIC_PREFIX or path.startswith(ANTHROPIC_PREFIX + "/")
    return anthropic_body(error) if anthropic else openai_body(error)


def language_of(headers: Mapping[str, str]) -> str:
    """In which a person reads what is said: "fr" or "en"."""
    return "fr" if headers.get("accept-language", "").strip().lower().startswith("fr") else "en"


def response_for(path: str, error: ApiError, language: str = "en") -> Response:
    """language: for the page's own routes; clients of the other APIs get English."""
    headers = dict(error.headers)
    if error.retry_after_s is not None:
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after_s)))
    body = body_for(path, error)
    if path.startswith(CHAT_PREFIX):
        body["error"]["message"] = translated(body["error"]["message"], language)
    return JSONResponse(body, status_code=error.status, headers=headers)
