"""Compiled programs on a server: registered once, run beside the KV cache; only events and host calls come back."""

from __future__ import annotations

import asyncio
import builtins
import contextvars
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from ramet.errors import RametError
from ramet.ir.types import Location
from ramet.lang.backends.http_client import error_for
from ramet.lang.backends.program_client import ProgramClient, ProgramsUnavailable, RemoteRun, RunSettings
from ramet.lang.compilation import Prepared
from ramet.lang.compiled import InProcess, Mirror, adopt, place
from ramet.lang.host_calls import ClientHost
from ramet.lang.track import Track
from ramet.program.backend import Conversation, Part
from ramet.wire.plain_values import from_json, to_json


@dataclass(frozen=True, slots=True)
class OnServer:
    """A strategy. Falls back to this process's interpreter where the server does not run programs of this version."""

    prepared: Prepared
    arguments: dict[str, Any]
    client: ProgramClient

    async def execute(self, program: Any, root: Track) -> Any:
        if self.client.unavailable is None:
            with suppress(ProgramsUnavailable):
                return await self._run(root)
        root.run.start_clock()
        return await InProcess(self.prepared.compiled, self.arguments).execute(program, root)

    async def _run(self, root: Track) -> Any:
        prepared, run = self.prepared, root.run
        settings = RunSettings(run.sampling, run.logprobs, run.timeout, run.live, run.traced, run.concurrency)
        follower = _Follower(root, ClientHost(prepared.compiled, run.backend), self.client)
        remote = self.client.start(prepared.digest, prepared.encoded, self.arguments, settings, follower.on_event)
        follower.remote = remote
        try:
            await run.know_chat()
            last = await remote.ended
        finally:
            remote.ended.cancel()  # unless it has ended
            run.server_id = remote.id
            await follower.close()
        return follower.finish(last, prepared)


class _Follower:
    """Applies the events of one run to its track and runs its host calls."""

    def __init__(self, track: Track, host: ClientHost, client: ProgramClient) -> None:
        self.remote: RemoteRun | None = None
        self._track, self._host, self._client = track, host, client
        self._mirror = Mirror(track, host)
        self._calls: set[asyncio.Task[None]] = set()
        self._failures: dict[int, BaseException] = {}
        self._context = contextvars.copy_context()

    def on_event(self, event: Mapping[str, Any]) -> None:
        match event["event"]:
            case "started":
                self._track.run.start_clock()
            case "text":
                self._mirror.saying(event["name"], event["text"])
            case "parts":
                self._mirror.said(_parts(event["parts"]))
            case "set":
                self._mirror.wrote(event["name"], from_json(event["value"]), event["meta"])
            case "call":
                task = asyncio.get_running_loop().create_task(self._call(event), context=self._context)
                self._calls.add(task)
                task.add_done_callback(self._calls.discard)

    async def _call(self, event: Mapping[str, Any]) -> None:
        number = event["number"]
        args = [from_json(each) for each in event["args"]]
        keywords = {key: from_json(each) for key, each in event["kwargs"].items()}
        try:
            answer: dict[str, Any] = {"value": to_json(await self._host.run(event["function"], args, keywords))}
        except Exception as error:
            self._failures[number] = error
            answer = {"error": {"type": type(error).__name__, "message": str(error)}}
        try:
            await self._client.answer(event["id"], number, answer)
        except RametError as error:
            if self.remote is not None and not self.remote.ended.done():
                self.remote.ended.set_exception(error)

    async def close(self) -> None:
        for task in self._calls:
            task.cancel()
        if self._calls:
            await asyncio.gather(*self._calls, return_exceptions=True)

    def finish(self, last: Mapping[str, Any], prepared: Prepared) -> Any:
        """What the function returned; raises what the program raised, at its line."""
        if last["event"] == "failed":
            failure = last["failure"]
            error = self._failures.get(failure.get("call", -1)) or raised(failure)
            error.add_note(place(prepared.compiled.module, Location(*last["location"])))
            raise error
        reveal = self._host.objects.reveal
        variables = {name: reveal(from_json(value)) for name, value in last["variables"].items()}
        adopt(self._track, Conversation(tuple(_parts(last["parts"]))), variables, last["meta"])
        self._track.run.server_spans = last.get("spans")
        return reveal(from_json(last["value"]))


def _parts(rows: list[list[Any]]) -> list[Part]:
    return [Part(kind, value) for kind, value in rows]


def raised(failure: Mapping[str, Any]) -> BaseException:
    """The exception that a failure of the server stands for: Ramet's by its code, Python's own by its name."""
    found = getattr(builtins, str(failure.get("cause")), None)
    if failure.get("code") is None and isinstance(found, type) and issubclass(found, Exception):
        return found(failure["message"])
    return error_for(failure.get("code"), int(failure["status"]), str(failure["message"]), failure.get("param"))
