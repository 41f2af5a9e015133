"""Programs on a Ramet server, seen from a client: registering, running many in one request, answering host calls."""

from __future__ import annotations

import asyncio
import json
import weakref
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, cast

from ramet.errors import RametError, RequestNotFound, UserError
from ramet.lang.backends.http_client import HttpClient
from ramet.log import get_logger
from ramet.wire.plain_values import to_json

log = get_logger(__name__)

MAX_RUNS_PER_REQUEST = 1000
NOT_FOUND = "program_not_found"
REFUSED_ENCODING = "invalid_program_encoding"


class ProgramsUnavailable(UserError):
    """This server does not run programs, or not this version of them."""

    code = "programs_unavailable"


@dataclass(frozen=True, slots=True)
class RunSettings:
    """What runs of one request have in common."""

    sampling: Mapping[str, Any] = field(default_factory=dict)
    logprobs: Mapping[str, Any] = field(default_factory=dict)
    timeout_s: float | None = None
    stream: bool = False
    trace: bool = False
    concurrency: int | None = None

    def to_json(self) -> dict[str, Any]:
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {name: to_json(dict(value) if isinstance(value, Mapping) else value) for name, value in fields.items()}


@dataclass(eq=False, slots=True)
class RemoteRun:
    """One run of a request. `on_event` gets its events in order; `ended` is set with its last event, or with why there is none."""

    arguments: Mapping[str, Any]
    on_event: Callable[[Mapping[str, Any]], None]
    ended: asyncio.Future[Mapping[str, Any]]
    id: str = ""
    abandoned: bool = False

    @property
    def is_wanted(self) -> bool:
        return not self.abandoned and not self.ended.done()


class ProgramClient:
    """Runs that are asked for in one turn of the loop go in one request. A request for a program that this client has not yet seen run
    brings the program along, so that the first run, too, costs one round trip."""

    def __init__(self, http: HttpClient) -> None:
        self._http = http
        self.unavailable: str | None = None  # why not, once the server has refused
        self.known: set[str] = set()  # digests that the server has had
        self._waiting: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, _Request]] = weakref.WeakKeyDictionary()

    async def register(self, digest: str, encoded: bytes) -> dict[str, Any]:
        """Ahead of the first run: grammars compiled, constants tokenised, the beginning in the cache. The server's report. Raises
        ProgramsUnavailable where it cannot take the program for a reason that is not the program's."""
        try:
            report: dict[str, Any] = await self._http.put(f"/v1/programs/{digest}", encoded)
        except UserError as error:
            raise self.refusal(error) from error
        self.known.add(digest)
        return report

    def refusal(self, error: RametError) -> RametError:
        """`error`, or that this server does not run programs, which is then remembered."""
        no_route = error.status in (404, 405) and error.code != NOT_FOUND
        if not no_route and error.code != REFUSED_ENCODING:
            return error
        self.unavailable = f"{self._http.base_url} does not run this program: {error.message}"
        log.info("%s; it is interpreted here instead", self.unavailable)
        return ProgramsUnavailable(self.unavailable)

    def start(
        self,
        digest: str,
        encoded: bytes,
        arguments: Mapping[str, Any],
        settings: RunSettings,
        on_event: Callable[[Mapping[str, Any]], None],
    ) -> RemoteRun:
        """Ask for a run."""
        loop = asyncio.get_running_loop()
        run = RemoteRun(arguments, on_event, loop.create_future())
        shared = settings.to_json()
        key = f"{digest} {json.dumps(shared, sort_keys=True)}"
        waiting = self._waiting.setdefault(loop, {})
        request = waiting.get(key)
        if request is None or len(request.runs) >= MAX_RUNS_PER_REQUEST:
            request = waiting[key] = _Request(self, digest, encoded, shared)
            loop.call_soon(self._send, waiting, key, request)
        request.runs.append(run)
        run.ended.add_done_callback(request.on_ended)
        run.ended.add_done_callback(lambda ended: ended.cancelled() or ended.exception())  # it may fail when nobody waits any more
        return run

    def _send(self, waiting: dict[str, _Request], key: str, request: _Request) -> None:
        if waiting.get(key) is request:
            del waiting[key]
        request.begin()

    async def answer(self, run_id: str, number: int, body: Mapping[str, Any]) -> None:
        """Answer a host call; a run that has ended meanwhile wants no answer."""
        try:
            await self._http.post(f"/v1/runs/{run_id}/calls/{number}", body)
        except RequestNotFound:
            log.debug("run %s no longer waits for call %d", run_id, number)

    async def trace(self, run_id: str) -> dict[str, Any]:
        found: dict[str, Any] = await self._http.get(f"/v1/runs/{run_id}")
        return found

    async def cancel(self, run_id: str) -> None:
        await self._http.delete(f"/v1/runs/{run_id}")

    def events(self, digest: str, body: Mapping[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
        return cast(AsyncGenerator[dict[str, Any], None], self._http.events(f"/v1/programs/{digest}/runs", body))


class _Request:
    """The runs of one HTTP request. Once nobody wants any of them the connection is closed, which cancels them on the server."""

    def __init__(self, client: ProgramClient, digest: str, encoded: bytes, shared: Mapping[str, Any]) -> None:
        self.runs: list[RemoteRun] = []
        self._client, self._digest, self._encoded, self._shared = client, digest, encoded, shared
        self._task: asyncio.Task[None] | None = None
        self._cancels: set[asyncio.Task[None]] = set()
        self._looking = False

    def begin(self) -> None:
        if any(run.is_wanted for run in self.runs):
            self._task = asyncio.create_task(self._pump())

    def on_ended(self, _: asyncio.Future[Any]) -> None:
        """A run is done, or its future was cancelled by whoever waited: look around once all that happens in this turn has happened."""
        if not self._looking:
            self._looking = True
            asyncio.get_running_loop().call_soon(self._look)

    def _look(self) -> None:
        self._looking = False
        if self._task is None or self._task.done():
            return
        if not any(run.is_wanted for run in self.runs):
            if any(run.ended.cancelled() for run in self.runs):  # else the stream is at its end, and its connection of further use
                self._task.cancel()
            return
        for run in self.runs:
            if run.ended.cancelled() and not run.abandoned:
                run.abandoned = True
                if run.id:
                    self._cancel(run.id)

    def _cancel(self, run_id: str) -> None:
        task = asyncio.create_task(self._client.cancel(run_id))
        self._cancels.add(task)
        task.add_done_callback(self._cancels.discard)
        task.add_done_callback(lambda done: done.cancelled() or done.exception())

    async def _pump(self) -> None:
        try:
            try:
                await self._follow(bring=self._digest not in self._client.known)
            except UserError as error:
                if error.code != NOT_FOUND:
                    raise
                await self._follow(bring=True)  # the server has forgotten it
            self._fail(UserError("the server ended the stream before the run"))
        except RametError as error:
            self._fail(self._client.refusal(error))
        except asyncio.CancelledError:
            self._fail(UserError("the request was cancelled"))
            raise

    async def _follow(self, *, bring: bool) -> None:
        arguments = [{name: to_json(value) for name, value in run.arguments.items()} for run in self.runs]
        body = {**self._shared, **({"arguments": arguments[0]} if len(arguments) == 1 else {"batch": arguments})}
        if bring:
            body["program"] = self._encoded.decode()
        async with aclosing(self._client.events(self._digest, body)) as events:
            async for event in events:
                self._deliver(self.runs[event["run"]], event)

    def _deliver(self, run: RemoteRun, event: Mapping[str, Any]) -> None:
        if event["event"] == "started":
            run.id = event["id"]
            self._client.known.add(self._digest)
            if run.ended.cancelled():
                self._cancel(run.id)
        if run.ended.done():
            return
        if event["event"] in ("done", "failed"):
            run.ended.set_result(event)
        else:
            run.on_event(event)

    def _fail(self, error: RametError) -> None:
        for run in self.runs:
            if not run.ended.done():
                run.ended.set_exception(error)


def runs_programs(backend: Any) -> ProgramClient | None:
    """The program client of a backend that has one."""
    found = getattr(backend, "programs", None)
    return found if isinstance(found, ProgramClient) else None


__all__: Sequence[str] = ["ProgramClient", "ProgramsUnavailable", "RemoteRun", "RunSettings", "runs_programs"]
