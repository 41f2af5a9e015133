"""One run of a program on the server: the interpreter on this server's engine, its events, its host calls, its trace."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ramet.errors import DeadlineExceeded, InternalError, InvalidRequest, QuotaExceeded, RametError, RequestNotFound
from ramet.ir.types import Location
from ramet.log import get_logger
from ramet.program.backend import Part
from ramet.program.budget import Budget, Spent
from ramet.program.failure import ProgramFailed
from ramet.program.interpreter import HostCall, ProgramResult, run_program
from ramet.program.timeline import Event, Timeline, location_to_json, span_to_json
from ramet.runtime.engine.program_backend import EngineBackend
from ramet.server.programs import RegisteredProgram
from ramet.server.run_stream import Outlet
from ramet.wire.plain_values import from_json, to_json

logger = get_logger(__name__)

MAX_UNREAD_EVENTS = 50_000
HOST_CALL = "host_call"
CANCELLED = {"message": "the run was cancelled", "code": "cancelled", "status": 499, "param": None, "cause": "Cancelled"}


@dataclass(frozen=True, slots=True)
class RunOrder:
    """What one run is to do. `stream`: events for text as it comes; `trace`: the spans with the result."""

    arguments: Mapping[str, Any]
    sampling: Mapping[str, Any] = field(default_factory=dict)
    logprobs: Mapping[str, Any] = field(default_factory=dict)
    timeout_s: float | None = None
    stream: bool = False
    trace: bool = False


class HostCallFailed(Exception):
    """The client's function raised; `number` is the call's."""

    def __init__(self, number: int, kind: str, message: str) -> None:
        super().__init__(f"{kind}: {message}")
        self.number = number


class LiveRun:
    """`status`: running, then done, failed or cancelled. Implements the interpreter's `HostCalls` and its watch of the conversation."""

    def __init__(self, program: RegisteredProgram, order: RunOrder, index: int, budget: Budget, *, host_seconds: float) -> None:
        self.id = uuid.uuid4().hex
        self.program, self.order, self.index = program, order, index
        self.status = "running"
        self.began = time.time()
        self.seconds = 0.0
        self.spent = Spent(budget)
        self.timeline = Timeline(self._on_event if order.stream else None, prompts=[] if order.trace else None)
        self._ended = asyncio.Event()
        self._task: asyncio.Task[Any] | None = None  # that executes it
        self._cancelled_by_name = False
        self._host_seconds = host_seconds
        self._calls: dict[int, asyncio.Future[Any]] = {}
        self.num_host_calls = 0

    async def execute(self, backend: EngineBackend, outlet: Outlet) -> None:
        """Runs to the end, which it tells as an event, in the calling task. Raises only when that is cancelled from outside."""
        self._outlet, self._task = outlet, asyncio.current_task()
        clock = self.spent.began = time.monotonic()
        self._emit({"event": "started", "id": self.id})
        try:
            result = await self._run(backend)
            self.status = "done"
            self._emit({"event": "done", **self._result(result)})
        except asyncio.CancelledError:
            self.status = "cancelled"
            if not self._is_ours_alone():
                raise  # the client is gone, or the server stops, which says so itself
            self._emit({"event": "failed", "failure": CANCELLED, "location": [0, 0, 0, 0]})
        except Exception as error:
            self.status = "failed"
            self._emit({"event": "failed", **self._failure(error)})
        finally:
            self.seconds = time.monotonic() - clock
            self._task = None
            self._ended.set()

    async def cancel(self) -> None:
        """End it now, and wait for that; the task that executes it goes on. An ended one stays as it is."""
        if self._task is not None and not self._cancelled_by_name:
            self._cancelled_by_name = True
            self._task.cancel()
        await self._ended.wait()

    def _is_ours_alone(self) -> bool:
        """Of the cancellations of the task, `cancel` has made one: are there no others?"""
        return self._cancelled_by_name and self._task is not None and not self._task.uncancel()

    def _emit(self, event: dict[str, Any]) -> None:
        self._outlet.emit({**event, "run": self.index})

    async def _run(self, backend: EngineBackend) -> ProgramResult:
        order = self.order
        deadline = asyncio.timeout(order.timeout_s)
        try:
            async with deadline:
                return await run_program(
                    self.program.module,
                    order.arguments,
                    backend,
                    host=self,
                    sampling=order.sampling,
                    logprobs=order.logprobs,
                    budget=self.spent,
                    timeline=self.timeline,
                    kv=backend,
                    watch=self if order.stream else None,
                    run_id=self.id,
                )
        except TimeoutError:
            if not deadline.expired():
                raise
            raise DeadlineExceeded(f"the run did not end within its timeout of {order.timeout_s:g} s") from None

    def _result(self, result: ProgramResult) -> dict[str, Any]:
        state = result.state
        found = {
            "value": to_json(result.value),
            "variables": {name: to_json(value) for name, value in state.variables.items()},
            "meta": {name: dict(meta) for name, meta in state.meta.items()},
            "parts": [[part.kind, part.value] for part in state.conversation.parts],
            "spent": self._counts(),
        }
        return found | ({"spans": [span_to_json(span) for span in self.timeline.spans]} if self.order.trace else {})

    def _counts(self) -> dict[str, int]:
        return {name: getattr(self.spent, name) for name in ("steps", "tokens", "forks", "bytes", "generations")}

    def _failure(self, error: Exception) -> dict[str, Any]:
        location, cause = Location(), error
        if isinstance(error, ProgramFailed):
            location, cause = error.location, error.__cause__ if isinstance(error.__cause__, Exception) else error
        details = _details(cause)
        if not isinstance(error, RametError):
            logger.error("run %s crashed", self.id, exc_info=error)
            details = _details(InternalError("internal error; the server's log has the traceback"))
        if isinstance(cause, HostCallFailed):
            details["call"] = cause.number
        return {"failure": details, "location": location_to_json(location), "spent": self._counts()}

    # events of the interpreter

    def _on_event(self, event: Event) -> None:
        if event.kind == "branch":
            self._tell({"event": "branch", "location": location_to_json(event.location), "taken": event.data["taken"]})

    def said(self, parts: Sequence[Part]) -> None:
        self._tell({"event": "parts", "parts": [[part.kind, part.value] for part in parts]})

    def saying(self, name: str | None, text: str) -> None:
        self._tell({"event": "text", "name": name, "text": text})

    def wrote(self, name: str, value: Any, meta: Mapping[str, Any] | None) -> None:
        self._tell({"event": "set", "name": name, "value": to_json(value), "meta": None if meta is None else dict(meta)})

    def _tell(self, event: dict[str, Any]) -> None:
        if self._outlet.num_pending > MAX_UNREAD_EVENTS:
            raise QuotaExceeded(f"the client left more than {MAX_UNREAD_EVENTS} events of this run unread")
        self._emit(event)

    # host calls

    async def call(self, call: HostCall) -> Any:
        self.num_host_calls += 1
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._calls[call.number] = answer
        self._emit(
            {
                "event": "call",
                "id": self.id,
                "number": call.number,
                "function": call.function,
                "args": [to_json(each) for each in call.args],
                "kwargs": {key: to_json(each) for key, each in call.kwargs.items()},
                "location": location_to_json(call.location),
            }
        )
        try:
            async with asyncio.timeout(self._host_seconds):
                return await answer
        except TimeoutError:
            raise DeadlineExceeded(f"the client did not answer {call.function}() within {self._host_seconds:g} s") from None
        finally:
            self._calls.pop(call.number, None)

    def answer(self, number: int, body: Mapping[str, Any]) -> None:
        """`{"value": …}` or `{"error": {"type", "message"}}`."""
        waiting = self._calls.get(number)
        if waiting is None or waiting.done():
            raise RequestNotFound(f"run {self.id} waits for no host call {number}")
        if set(body) == {"value"}:
            waiting.set_result(from_json(body["value"]))
        elif set(body) == {"error"} and isinstance(body["error"], dict):
            kind, message = str(body["error"].get("type", "Exception"))[:80], str(body["error"].get("message", ""))[:4000]
            waiting.set_exception(HostCallFailed(number, kind, message))
        else:
            raise InvalidRequest('an answer is {"value": …} or {"error": {"type": …, "message": …}}')

    # the trace

    def trace(self) -> dict[str, Any]:
        """What happened, or what has happened so far: the data of the waterfall."""
        return {
            "id": self.id,
            "digest": self.program.digest,
            "status": self.status,
            "began": self.began,
            "seconds": self.seconds,
            "spent": self._counts(),
            "spans": [span_to_json(span) for span in self.timeline.spans],
            "sources": [[each.file, each.first_line, list(each.lines)] for each in self.program.module.sources],
        }


def _details(cause: Exception) -> dict[str, Any]:
    """`cause` is the class of what the program raised: Python's own errors keep their names."""
    if isinstance(cause, RametError):
        found = {"message": cause.message, "code": cause.code, "status": cause.status, "param": cause.param}
    else:
        message = str(cause.args[0]) if isinstance(cause, KeyError) and cause.args else str(cause)
        found = {"message": message, "code": None, "status": 400, "param": None}
    return {**found, "cause": type(cause).__name__}
