"""Who may talk to the server: key, Host, Origin.

The key is checked by the route itself, never by looking at the path: a check in front that reads
the path (or builds it from the Host header) can be talked past (CVE-2026-48710). Without a key the
server listens on loopback only, where DNS rebinding is the way in from a web page: a page of
evil.example that resolves to 127.0.0.1 still sends `Host: evil.example`, and is refused.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Awaitable, Callable

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from ayllu.serve.faults import ApiError

Endpoint = Callable[[Request], Awaitable[Response]]

_LOOPBACK = r"(?:localhost|127(?:\.\d{1,3}){3}|\[::1\])(?::\d{1,5})?"
_HOST = re.compile(_LOOPBACK, re.IGNORECASE)
_ORIGIN = re.compile(rf"https?://{_LOOPBACK}", re.IGNORECASE)


def presented_key(headers: Headers) -> str:
    """The one place that reads a key: `Authorization: Bearer KEY`, sent exactly once."""
    values = headers.getlist("authorization")
    scheme, _, key = values[0].partition(" ") if len(values) == 1 else ("", "", "")
    return key.strip() if scheme.lower() == "bearer" else ""


def cache_salt(headers: Headers) -> str:
    """Whose stored text a request may meet: holders of one key share computed prefixes, others don't learn
    from the time of an answer what somebody else has asked (CVE-2025-46570)."""
    key = presented_key(headers)
    secret = b"ayllu cache salt\0" + key.encode("utf-8", "surrogateescape")
    return hashlib.sha256(secret).hexdigest() if key else ""


def same_key(given: str, wanted: str) -> bool:
    """Equality in constant time, whatever the lengths."""
    digests = [hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest() for key in (given, wanted)]
    return hmac.compare_digest(*digests)


def guarded(endpoint: Endpoint, api_key: str | None) -> Endpoint:
    """`endpoint` for holders of the key only (for everybody when there is none)."""
    if api_key is None:
        return endpoint

    async def checked(request: Request) -> Response:
        if not same_key(presented_key(request.headers), api_key):
            raise ApiError(
                401,
                "invalid_api_key",
                "a valid API key is needed: send it as 'Authorization: Bearer KEY'",
                headers={"www-authenticate": "Bearer"},
            )
        return await endpoint(request)

    return checked


class LoopbackOnly:
    """ASGI middleware: only requests that name this machine, from pages of this machine or none."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (refusal := _refusal(Headers(scope=scope))):
            await refusal.response()(scope, receive, send)
            return
        await self.app(scope, receive, send)


def _refusal(headers: Headers) -> ApiError | None:
    hosts, origins = headers.getlist("host"), headers.getlist("origin")
    if len(hosts) != 1 or not _HOST.fullmatch(hosts[0]):
        return ApiError(403, "host_not_allowed", "this server answers to localhost only")
    if any(not _ORIGIN.fullmatch(origin) for origin in origins):
        return ApiError(403, "origin_not_allowed", "web pages of other sites can't use this server")
    if headers.get("sec-fetch-site") == "cross-site":
        return ApiError(403, "origin_not_allowed", "web pages of other sites can't use this server")
    return None
