"""The answer to a request for program runs: their events, sent as they happen, those that are ready together in one piece."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi.responses import Response
from starlette.types import Receive, Scope, Send

from ramet.errors import Cancelled, InternalError, RametError
from ramet.log import get_logger
from ramet.server.error_responses import error_body
from ramet.server.sse import DONE, HEADERS, encoded, until_disconnect

logger = get_logger(__name__)

LINGER_SECONDS = 0.1
Event = dict[str, Any]


class RunStream(Response):
    """Does `work`, which emits the events, and cancels it when the client leaves. The work runs in the task that sends, so a lone run
    is answered without waking anybody else.

    The status line waits for the first event, so that work refused before it gets its real status; a failure after that becomes an
    event `{"error": …}`. `patient`: nobody waits to hear that a run has started, so that goes with what comes after it.
    """

    def __init__(self, work: Callable[[Outlet], Coroutine[Any, Any, None]], *, patient: bool) -> None:
        super().__init__(media_type="text/event-stream")
        self._work, self._patient = work, patient

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        outlet = Outlet(send, patient=self._patient)
        try:
            await until_disconnect(receive, self._serve(outlet))
        except Cancelled:
            logger.debug("client closed %s", scope["path"])
        finally:
            outlet.close()

    async def _serve(self, outlet: Outlet) -> None:
        try:
            await self._work(outlet)
        except RametError as error:
            if not outlet.has_begun:
                raise
            outlet.emit(error_body(error))
        except Exception:
            if not outlet.has_begun:
                raise
            logger.exception("a request for runs crashed")
            outlet.emit(error_body(InternalError("internal error; the server's log has the traceback")))
        await outlet.end()


class Outlet:
    """Gathers events and sends them: soon, or with the end where that comes first."""

    def __init__(self, send: Send, *, patient: bool) -> None:
        self.has_begun = False
        self._send, self._patient = send, patient
        self._pending: list[Event] = []
        self._due: asyncio.Handle | None = None
        self._sending: asyncio.Task[None] | None = None

    @property
    def num_pending(self) -> int:
        """More and more of them where the client reads more slowly than events come."""
        return len(self._pending)

    def emit(self, event: Event) -> None:
        self._pending.append(event)
        if self._sending is not None:
            return
        loop = asyncio.get_running_loop()
        if self._patient and event.get("event") == "started":
            self._due = self._due or loop.call_later(LINGER_SECONDS, self._begin_sending)
        elif self._due is None or isinstance(self._due, asyncio.TimerHandle):
            self._cancel_due()
            self._due = loop.call_soon(self._begin_sending)

    def _begin_sending(self) -> None:
        self._due = None
        if self._pending and self._sending is None:
            self._sending = asyncio.get_running_loop().create_task(self._send_pending())

    async def _send_pending(self) -> None:
        while self._pending:
            await self._write(last=False)
        self._sending = None

    async def end(self) -> None:
        """Send what is left, and the end of the stream."""
        self._cancel_due()
        if self._sending is not None:
            await self._sending
        await self._write(last=True)

    async def _write(self, *, last: bool) -> None:
        body = b"".join(map(encoded, self._pending)) + (DONE if last else b"")
        self._pending = []
        if not self.has_begun:
            self.has_begun = True
            await self._send({"type": "http.response.start", "status": 200, "headers": HEADERS})
        await self._send({"type": "http.response.body", "body": body, "more_body": not last})

    def close(self) -> None:
        self._cancel_due()
        if self._sending is not None:
            self._sending.cancel()

    def _cancel_due(self) -> None:
        if self._due is not None:
            self._due.cancel()
            self._due = None
