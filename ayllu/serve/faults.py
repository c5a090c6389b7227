"""Errors on the wire: OpenAI's shape, a stable string `code`, nothing about the machine.

Clients decide by `code` (an agent harness compacts its history on `context_length_exceeded`), so
codes are strings that never change. Messages of unexpected errors name neither paths nor values.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
from starlette.responses import Response

from ayllu.errors import AylluError, ContextLengthError, GrammarFailedError, QueueFullError, RequestError


class ErrorBody(msgspec.Struct):
    """The object under `error`."""

    message: str
    type: str
    param: str | None
    code: str


class ErrorEnvelope(msgspec.Struct):
    """What is sent, as a response's body or as an event in a stream."""

    error: ErrorBody


class ApiError(Exception):
    """A refusal with its HTTP status."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.headers = status, dict(headers or {})
        kind = "server_error" if status >= 500 else "invalid_request_error"
        self.envelope = ErrorEnvelope(ErrorBody(message, kind, param, code))

    def response(self) -> Response:
        """The whole refusal as a response."""
        return Response(
            msgspec.json.encode(self.envelope),
            status_code=self.status,
            media_type="application/json",
            headers=self.headers,
        )


def invalid(message: str, param: str | None = None, code: str = "invalid_value") -> ApiError:
    """400: the request can't be served as it stands."""
    return ApiError(400, code, message, param=param)


def as_api_error(error: BaseException) -> ApiError:
    """The wire's form of any error. What isn't the caller's doing becomes a plain 500."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, QueueFullError):
        return ApiError(503, error.code, error.what, headers={"retry-after": "2"})
    if isinstance(error, RequestError):
        param = "messages" if isinstance(error, ContextLengthError) else None
        text = f"{error.what} ({error.fix})" if error.fix else error.what
        return ApiError(400, error.code, text, param=param)
    if isinstance(error, AylluError) and error.code in ("shutting_down", "engine_failed"):
        return ApiError(503, error.code, error.what, headers={"retry-after": "10"})
    if isinstance(error, GrammarFailedError):
        return ApiError(500, error.code, error.what)
    return ApiError(500, "internal_error", "the server failed on this request; its log names the place")
