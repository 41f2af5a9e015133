"""What clients hear when the server's grace has passed and their requests are cut off."""

from __future__ import annotations

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ramet.errors import ServerStopping
from ramet.server.error_responses import error_body, error_response
from ramet.server.sse import DONE, encoded


class LastWord:
    """ASGI middleware, the outermost: uvicorn cancels what still runs when the grace of a stop is over. That reaches the client as an
    error, or as the last event of its stream, instead of a torn connection, and the log without a traceback."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started: Message | None = None
        ended = False

        async def send_noting(message: Message) -> None:
            nonlocal started, ended
            if message["type"] == "http.response.start":
                started = message
            ended = message["type"] == "http.response.body" and not message.get("more_body", False)
            await send(message)

        try:
            await self._app(scope, receive, send_noting)
        except asyncio.CancelledError:
            if scope["type"] != "http":
                raise
            if not ended:
                await _say(started, scope, receive, send)


async def _say(started: Message | None, scope: Scope, receive: Receive, send: Send) -> None:
    error = ServerStopping("the server was told to stop before this was done; send it again")
    if started is None:
        await error_response(error)(scope, receive, send)
    elif (b"content-type", b"text/event-stream; charset=utf-8") in started["headers"]:
        await send({"type": "http.response.body", "body": encoded(error_body(error)) + DONE, "more_body": False})
