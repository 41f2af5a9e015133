"""One run of a program: its backend, its defaults, and every track (conversation) that it has opened."""

from __future__ import annotations

import asyncio
import itertools
import random
import uuid
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from ramet.errors import Unsupported
from ramet.lang.track import Track
from ramet.program.backend import PLAIN_FORMAT, Backend, ChatFormat
from ramet.program.running import KvHints
from ramet.program.timeline import Timeline

T = TypeVar("T")


@dataclass(eq=False, slots=True)
class Run:
    """`sampling` and `logprobs` are the defaults of this run; a gen's own arguments go before them."""

    backend: Backend
    sampling: Mapping[str, Any] = field(default_factory=dict)
    logprobs: Mapping[str, Any] = field(default_factory=dict)
    run_id: str = field(default_factory=lambda: uuid.uuid4().hex)
    loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)
    tracks: list[Track] = field(default_factory=list)
    ended: bool = False
    live: bool = False  # somebody watches the text as it comes
    timeout: float | None = None
    clock: asyncio.Timeout | None = None
    concurrency: int | None = None  # of the batch that this run is one of: it may wait for its turn on the server
    traced: bool = False
    timeline: Timeline | None = None  # of a run of the interpreter in this process
    server_id: str = ""  # of a run on a server
    server_spans: list[dict[str, Any]] | None = None
    chat: ChatFormat = PLAIN_FORMAT  # until it is known
    _keys: itertools.count[int] = field(default_factory=itertools.count)
    _draw: random.Random | None = None

    def open_track(self, *, started: bool = True) -> Track:
        track = Track(self, started=started)
        self.tracks.append(track)
        return track

    def start_clock(self) -> None:
        """From now on the run has `timeout` seconds."""
        if self.timeout is not None and self.clock is not None:
            self.clock.reschedule(self.loop.time() + self.timeout)

    async def know_chat(self) -> None:
        """Ask the backend for its chat format; whoever renders a transcript must have waited for this."""
        if self.chat is PLAIN_FORMAT:
            self.chat = await chat_format_of(self.backend)

    def hidden_key(self) -> int:
        return next(self._keys)

    def draw(self, seed: int | None) -> random.Random:
        """The dice of a select: its own seed, else one stream per run (seeded when the run is)."""
        if seed is not None:
            return random.Random(seed)
        if self._draw is None:
            self._draw = random.Random(self.sampling.get("seed"))
        return self._draw

    async def settle(self) -> None:
        """Wait for everything that was appended; raise the first failure that the program has not seen."""
        for track in self.tracks:
            await track.idle()
        for track in self.tracks:
            if track.error is not None and not track.delivered:
                raise track.deliver()

    async def cancel(self) -> None:
        """End every generation of this run at the backend."""
        if busy := [track.cancel() for track in self.tracks if track.is_working]:
            await asyncio.gather(*busy)

    def end(self) -> None:
        self.ended = True
        if self.timeline is None and not self.server_id and isinstance(self.backend, KvHints):  # else who ran it has told
            self.backend.ended(self.run_id)
        for track in self.tracks:
            track.changed.ring()


async def chat_format_of(backend: Backend) -> ChatFormat:
    try:
        return await backend.chat_format()
    except Unsupported:
        return PLAIN_FORMAT


async def all_of(coroutines: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """Run together; the first failure cancels the others and is raised as it is."""
    tasks = [asyncio.ensure_future(coroutine) for coroutine in coroutines]
    try:
        return list(await asyncio.gather(*tasks))
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise
