"""Bearer-token check and body-size limit, in front of every route."""

from __future__ import annotations

import hmac

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
        await self._app(scope, self._counted(receive), send)

    def _counted(self, receive: Receive) -> Receive:
        seen = 0

        async def receive_counted() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self._limit:
                raise self._error()
            return message

        return receive_counted

    def _error(self) -> TooLarge:
        return TooLarge(f"the request body exceeds {self._limit} bytes; split the batch, or raise --max-body-mb on the server")
