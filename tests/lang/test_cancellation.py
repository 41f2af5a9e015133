"""Runs that end early: cancelled, out of time, dropped, failed; each aborts what it was generating at the backend."""

from __future__ import annotations

import asyncio
import gc
import threading
from typing import Any

import pytest

import ramet as sgl
from ramet.errors import Cancelled, DeadlineExceeded, InvalidRequest
from ramet.program.scripted import ScriptedBackend
from tests.waiting import until, wait_until

FOREVER = 1e6
"""Seconds of a generation that ends only where something ends it."""


@sgl.function
def slow(s: Any) -> Any:
    s += sgl.gen("x") + sgl.gen("y")
    return s["y"]


@sgl.function
def wide(s: Any) -> None:
    forks = s.fork(3)
    forks += sgl.gen("x")
    forks.join()


@pytest.mark.parametrize("program", [slow, wide])
async def test_cancelling_a_run_aborts_its_generations(program: Any) -> None:
    backend = ScriptedBackend(latency=FOREVER)
    task = asyncio.create_task(program.arun(backend=backend))
    await until(lambda: backend.live == (1 if program is slow else 3))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (backend.live, backend.aborted) == (0, len(backend.calls))


@pytest.mark.parametrize("program", [slow, wide])
def test_a_deadline_ends_the_run(program: Any) -> None:
    backend = ScriptedBackend(latency=FOREVER)
    with pytest.raises(DeadlineExceeded, match=r"timeout of 0\.05 s"):
        program.run(backend=backend, timeout=0.05)
    assert (backend.live, backend.aborted) == (0, len(backend.calls))


def test_a_timeout_of_the_body_is_not_the_runs() -> None:
    @sgl.function
    def own(s: Any) -> None:
        raise TimeoutError("mine")

    with pytest.raises(TimeoutError, match="mine"):
        own.run(backend=ScriptedBackend(), timeout=5)
    with pytest.raises(InvalidRequest, match="above 0"):
        own.run(backend=ScriptedBackend(), timeout=-1)


def test_finally_blocks_of_a_cancelled_body_run() -> None:
    left = threading.Event()

    @sgl.function
    def careful(s: Any) -> None:
        try:
            s += sgl.gen("x")
            s.sync()
        finally:
            left.set()

    backend = ScriptedBackend(latency=FOREVER)
    state = careful.run(backend=backend, stream=True)
    wait_until(lambda: backend.live)
    state.cancel()
    with pytest.raises(Cancelled):
        _ = state["x"]
    assert left.is_set() and isinstance(state.error(), Cancelled)
    assert backend.live == 0


def test_dropping_a_streaming_result_cancels_it() -> None:
    backend = ScriptedBackend(latency=FOREVER)
    state = slow.run(backend=backend, stream=True)
    wait_until(lambda: backend.live)
    del state
    gc.collect()
    wait_until(lambda: backend.aborted == 1)
    assert backend.live == 0


async def test_leaving_a_stream_early_cancels_the_run() -> None:
    backend = ScriptedBackend(["one " * 100] * 2, latency=2.0)
    stream = slow.astream(backend=backend)
    async for _ in stream:
        break
    await stream.aclose()  # type: ignore[attr-defined]
    assert (backend.live, backend.aborted) == (0, 1)


def test_a_failing_body_stops_what_it_started() -> None:
    @sgl.function
    def fails(s: Any) -> None:
        s += sgl.gen("x")
        sgl.call(wait_until, lambda: backend.live)
        raise ValueError("body")

    backend = ScriptedBackend(latency=FOREVER)
    with pytest.raises(ValueError, match="body"):
        fails.run(backend=backend)
    assert (backend.live, backend.aborted) == (0, 1)


async def test_a_blocking_read_on_the_loop_is_refused_not_a_deadlock() -> None:
    @sgl.function
    async def stray(s: Any) -> Any:
        s += sgl.gen("x")

        async def child() -> Any:
            return s["x"]

        return await asyncio.create_task(child())

    with pytest.raises(InvalidRequest, match="aget_var"):
        await stray.arun(backend=ScriptedBackend(latency=FOREVER))
