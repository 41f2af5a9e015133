"""Which request an output belongs to, and on which event loop somebody waits for it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterable
from dataclasses import dataclass

from ramet.errors import InvalidRequest, QueueFull
from ramet.runtime.engine.delta_assembler import DeltaAssembler, joined
from ramet.runtime.engine.result_cache import Recording
from ramet.runtime.request import Delta, Finish, FinishKind


class Stream:
    """Deltas on their way to one consumer. Everything happens on the consumer's loop; only `loop` is read from outside."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._pending: list[Delta] = []
        self._waiter: asyncio.Future[None] | None = None

    def push(self, delta: Delta) -> None:
        self._pending.append(delta)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def next(self) -> Delta:
        """All that came since the last call, as one delta: a slow consumer gets fewer, longer ones."""
        while not self._pending:
            self._waiter = self.loop.create_future()
            await self._waiter
        pending, self._pending = self._pending, []
        return joined(pending)


@dataclass(frozen=True, slots=True)
class Entry:
    """A request in flight. `wire_id` is its name at the worker, `request_id` the one that its user knows."""

    wire_id: str
    request_id: str
    assembler: DeltaAssembler
    stream: Stream
    recording: Recording | None = None


class RequestTable:
    """Every request between its submission and its one terminal event. Whoever removes an entry delivers that event. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._by_wire_id: dict[str, Entry] = {}
        self._wire_ids: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self._by_wire_id)

    def add(self, entry: Entry, *, limit: int | None) -> bool:
        """Raises `InvalidRequest` for an id in use and `QueueFull` beyond `limit` requests. Says whether the table was empty."""
        with self._lock:
            if entry.request_id in self._wire_ids:
                raise InvalidRequest(f"request id {entry.request_id!r} is in use by a running request; give another", param="rid")
            if limit is not None and len(self._by_wire_id) >= limit:
                raise QueueFull(f"{limit} requests run or wait, and no more may (--max-queued-requests); try again later")
            self._by_wire_id[entry.wire_id] = entry
            self._wire_ids[entry.request_id] = entry.wire_id
            return len(self._by_wire_id) == 1

    def get(self, wire_id: str) -> Entry | None:
        return self._by_wire_id.get(wire_id)

    def wire_id_of(self, request_id: str) -> str | None:
        return self._wire_ids.get(request_id)

    def remove(self, wire_id: str) -> Entry | None:
        """None: somebody else has removed it, and delivers."""
        with self._lock:
            entry = self._by_wire_id.pop(wire_id, None)
            if entry is not None:
                del self._wire_ids[entry.request_id]
            return entry

    def remove_all(self) -> list[Entry]:
        with self._lock:
            entries = list(self._by_wire_id.values())
            self._by_wire_id.clear()
            self._wire_ids.clear()
            return entries


class Delivery:
    """One step's deltas, gathered by event loop, so that each loop is woken once per step."""

    def __init__(self) -> None:
        self._by_loop: dict[asyncio.AbstractEventLoop, list[tuple[Stream, Delta]]] = {}

    def add(self, stream: Stream, delta: Delta) -> None:
        self._by_loop.setdefault(stream.loop, []).append((stream, delta))

    def send(self) -> list[str]:
        """Hand everything over. Returns the request ids whose loop is closed: nobody will read them any more."""
        lost: list[str] = []
        for loop, news in self._by_loop.items():
            try:
                loop.call_soon_threadsafe(_push_all, news)
            except RuntimeError:  # the loop was closed
                lost += [delta.request_id for _, delta in news]
        return lost


def failure(error: Exception, *, status: int, code: str) -> Finish:
    return Finish(FinishKind.ERROR, message=str(error), status=status, code=code)


def _push_all(news: Iterable[tuple[Stream, Delta]]) -> None:
    for stream, delta in news:
        stream.push(delta)
