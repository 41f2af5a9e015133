"""Server-sent events, and the watch that stops work when its client has gone.

Both reply shapes run under `until_disconnect`: the moment the client closes the connection the work is cancelled, which closes the
engine's stream, which aborts the generation at the next step.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Coroutine, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
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


@dataclass(frozen=True, slots=True)
class Burst:
    """Events that go out in one piece: what is ready together wakes the client once. `last`: nothing comes after them."""

    events: Sequence[Event]
    last: bool = False


class EventStream(Response):
    """Sends each event of a generator as `data: {json}`, those of a `Burst` together, then `data: [DONE]`.

    The status line waits for the first event, so that a request refused by the engine gets its real status. A failure after that
    becomes an event `{"error": …}`.
    """

    def __init__(self, events: AsyncGenerator[Event | Burst, None]) -> None:
        super().__init__(media_type="text/event-stream")
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await until_disconnect(receive, self._send_all(send))
        except Cancelled:
            logger.debug("client closed %s", scope["path"])

    async def _send_all(self, send: Send) -> None:
        async with aclosing(self._events) as events:
            first = _burst(await anext(events, Burst((), last=True)))
            body = _encoded(first)
            await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
            await send({"type": "http.response.body", "body": body, "more_body": not first.last})
            if not first.last and not await self._send_rest(events, send):
                await send({"type": "http.response.body", "body": DONE, "more_body": False})

    async def _send_rest(self, events: AsyncGenerator[Event | Burst, None], send: Send) -> bool:
        """Whether the end has been sent too."""
        try:
            async for event in events:
                burst = _burst(event)
                await send({"type": "http.response.body", "body": _encoded(burst), "more_body": not burst.last})
                if burst.last:
                    return True
        except RametError as error:
            await _send_error(send, error)
        except Exception:
            logger.exception("a stream crashed")
            await _send_error(send, InternalError("internal error; the server's log has the traceback"))
        return False


async def _send_error(send: Send, error: RametError) -> None:
    await send({"type": "http.response.body", "body": _encoded(Burst((error_body(error),))), "more_body": True})


def _burst(event: Event | Burst) -> Burst:
    return event if isinstance(event, Burst) else Burst((event,))


def _encoded(burst: Burst) -> bytes:
    lines = (f"data: {json.dumps(event, ensure_ascii=False, separators=(',', ':'))}\n\n".encode() for event in burst.events)
    return b"".join(lines) + (DONE if burst.last else b"")


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
