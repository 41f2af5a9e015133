"""Server-sent events, and the watch that stops work when its client has gone.

Both reply shapes run under `until_disconnect`: the moment the client closes the connection the work is cancelled, which closes the
engine's stream, which aborts the generation at the next step.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Coroutine, Mapping
from contextlib import aclosing
from typing import Any, TypeVar

from fastapi.responses import Response
from starlette.types import Receive, Scope, Send

from ramet.errors import Cancelled, InternalError, RametError
from ramet.log import get_logger
from ramet.server.error_responses import error_body

logger = get_logger(__name__)

T = TypeVar("T")
Event = Mapping[str, Any]

DONE = b"data: [DONE]\n\n"
HEADERS = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no")]


async def until_disconnect(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """Run `work`; when the client closes the connection first, cancel it, wait for its clean-up and raise `Cancelled`.

    The request's body must have been read: the only message left to receive is the disconnect.
    """
    task = asyncio.ensure_future(work)
    watch = asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise Cancelled("the client closed the connection")
        return task.result()
    finally:
        task.cancel()
        watch.cancel()
        await asyncio.gather(task, watch, return_exceptions=True)


class EventStream(Response):
    """Sends each event of a generator as `data: {json}`, then `data: [DONE]`.

    The status line waits for the first event, so that a request refused by the engine gets its real status. A failure after that
    becomes an event `{"error": …}`. `named`: each event is also `event: {its type}`, and the last one says by itself that it is.
    """

    def __init__(self, events: AsyncGenerator[Event, None], *, named: bool = False) -> None:
        super().__init__(media_type="text/event-stream")
        self._events = events
        self._named = named

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await until_disconnect(receive, self._send_all(send))
        except Cancelled:
            logger.debug("client closed %s", scope["path"])

    async def _send_all(self, send: Send) -> None:
        async with aclosing(self._events) as events:
            first = await anext(events, None)
            await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
            if first is not None:
                await self._send_event(send, first)
                await self._send_rest(events, send)
            await send({"type": "http.response.body", "body": b"" if self._named else DONE, "more_body": False})

    async def _send_rest(self, events: AsyncGenerator[Event, None], send: Send) -> None:
        try:
            async for event in events:
                await self._send_event(send, event)
        except RametError as error:
            await self._send_event(send, error_body(error))
        except Exception:
            logger.exception("a stream crashed")
            await self._send_event(send, error_body(InternalError("internal error; the server's log has the traceback")))

    async def _send_event(self, send: Send, event: Event) -> None:
        name = f"event: {event['type']}\n".encode() if self._named and "type" in event else b""
        await send({"type": "http.response.body", "body": name + encoded(event), "more_body": True})


def encoded(event: Event) -> bytes:
    return f"data: {json.dumps(event, ensure_ascii=False, separators=(',', ':'))}\n\n".encode()


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
