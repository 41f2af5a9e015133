"""Bearer-token check and body-size limit, in front of every route."""

from __future__ import annotations

import hmac
from collections.abc import Callable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ramet.errors import TooLarge, Unauthorized
from ramet.server.error_responses import error_response

OPEN_PATHS = ("/health", "/metrics")
"""Probes and scrapers carry no token, as with SGLang."""


class BearerAuth:
    """ASGI middleware: 401 unless `Authorization: Bearer <api_key>`; open paths and CORS preflights excepted."""

    def __init__(self, app: ASGIApp, api_key: str) -> None:
        self._app = app
        self._expected = f"Bearer {api_key}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not self._allowed(scope):
            error = Unauthorized("send the server's API key as 'Authorization: Bearer KEY'")
            await error_response(error)(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _allowed(self, scope: Scope) -> bool:
        if scope["method"] == "OPTIONS" or scope["path"].startswith(OPEN_PATHS):
            return True
        given = dict(scope["headers"]).get(b"authorization", b"")
        return hmac.compare_digest(given, self._expected)


class BodyLimit:
    """ASGI middleware: 413 for a body longer than `limit` bytes, announced or counted while it streams in."""

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self._app = app
        self._limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        announced = dict(scope["headers"]).get(b"content-length", b"0")
        if announced.isdigit() and int(announced) > self._limit:
            await error_response(self._error())(scope, receive, send)
            return
        await _LimitedCall(self._limit).run(self._app, scope, receive, send, refusal=self._error)

    def _error(self) -> TooLarge:
        return TooLarge(f"the request body exceeds {self._limit} bytes; split the batch, or raise --max-body-mb on the server")


class _LimitedCall:
    """One request whose body is counted while it is read. Past the limit reading fails, and whatever the app makes of that failure is
    replaced by the refusal."""

    def __init__(self, limit: int) -> None:
        self._left = limit

    async def run(self, app: ASGIApp, scope: Scope, receive: Receive, send: Send, *, refusal: Callable[[], TooLarge]) -> None:
        async def receive_counted() -> Message:
            message = await receive()
            self._left -= len(message.get("body", b""))
            if self._left < 0:
                raise OverflowError("the request body is too large")
            return message

        async def send_unless_refused(message: Message) -> None:
            if self._left >= 0:
                await send(message)

        await app(scope, receive_counted, send_unless_refused)
        if self._left < 0:
            await error_response(refusal())(scope, receive, send)
