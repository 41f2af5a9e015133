"""The event loop of sync callers: one background thread, started at the first need, shared by every program of the process."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from ramet.errors import InvalidRequest
from ramet.lang.bridge import in_body, suspend

T = TypeVar("T")

LOOP_ENDED = "the event loop of this program has ended before the program did"


class Runner:
    """Owns one event loop in one daemon thread."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve, name="ramet-programs", daemon=True)
        self._thread.start()

    def submit(self, coroutine: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop)

    def stop(self) -> None:
        """Cancel what still runs, so that backends abort it, then end the thread."""
        if self._thread.is_alive():
            self.loop.call_soon_threadsafe(self._cancel_all)
            self._thread.join(timeout=2.0)

    def _serve(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()

    def _cancel_all(self) -> None:
        tasks = asyncio.all_tasks(self.loop)
        for task in tasks:
            task.cancel()
        asyncio.gather(*tasks, return_exceptions=True).add_done_callback(lambda _: self.loop.stop())


def wait_for(loop: asyncio.AbstractEventLoop, make: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Wait for a coroutine from sync code: a program's body suspends, another thread blocks until `loop` has run it."""
    here = running_loop()
    if in_body() and here is loop:
        result: T = suspend(make())
        return result
    if here is loop:
        raise InvalidRequest(
            "a blocking read on the event loop would wait for itself; await it (`await s.aget_var(name)`, `await s`, `arun`)"
        )
    if not loop.is_running():
        raise InvalidRequest(LOOP_ENDED)
    future = asyncio.run_coroutine_threadsafe(make(), loop)
    try:
        return future.result()
    except BaseException:
        future.cancel()
        raise


async def on_loop(loop: asyncio.AbstractEventLoop, make: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Await a coroutine that belongs to `loop`, from there or from any other event loop: `run(stream=True)` gives its result to whoever
    called it, and he may well be async himself."""
    if running_loop() is loop:
        return await make()
    if not loop.is_running():
        raise InvalidRequest(LOOP_ENDED)
    return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(make(), loop))


def running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
