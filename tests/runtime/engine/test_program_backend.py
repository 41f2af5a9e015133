"""What programs say of their KV reaches the worker's tree, on a thread and in a process of its own."""

from __future__ import annotations

import asyncio
import os
import signal
import time

import pytest

import ramet as sgl
from ramet.program.backend import Conversation, GenerateCall, Part
from ramet.program.running import KvHints
from ramet.runtime.config import EngineConfig
from ramet.runtime.engine.async_engine import AsyncEngine
from ramet.runtime.engine.program_backend import EngineBackend
from tests.fakes import fake_engine
from tests.runtime.engine.test_worker_process import stats_of_the_next
from tests.waiting import PATIENCE, wait_until

ASKED = Conversation((Part("text", "How far is the moon? It is"),))


async def pinned(engine, wanted: int) -> bool:
    """Hints are not answered: the pins are there soon."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        if (await engine.stats()).pinned_tokens == wanted:
            return True
    return False


@pytest.mark.parametrize("worker", ["thread", "process"])
async def test_pin_free_and_the_end_of_a_run_reach_the_tree(worker):
    parts = {"executor_factory": "tests.fakes:fake_executor", "text_factory": "tests.fakes:fake_text"}
    config = EngineConfig.from_options({"radix_eviction_policy": "next-use", "kv_pin_seconds": 1000.0})
    engine = AsyncEngine.start_now(config, worker=worker, **parts)
    try:
        backend = EngineBackend(engine)
        assert isinstance(backend, KvHints)
        await backend.prefetch(ASKED, "run")
        length = await backend.num_tokens(ASKED)
        assert await pinned(engine, length)
        await backend.free(ASKED, "run")
        assert await pinned(engine, 0)
        await backend.pin(ASKED, "run")
        assert await pinned(engine, length)
        backend.ended("run")
        assert await pinned(engine, 0)
    finally:
        engine.close_now()


async def test_a_generation_carries_what_the_compiler_knows():
    engine = fake_engine()
    try:
        sampling = {"max_new_tokens": 4, "temperature": 0}
        call = GenerateCall(ASKED, sampling, run_id="run", hints={"path": 3, "max_tokens": 4}, stream=False)
        [chunk] = [chunk async for chunk in EngineBackend(engine).generate(call)]
        assert chunk.finished
        assert await pinned(engine, await EngineBackend(engine).num_tokens(ASKED) + 3)  # the run goes on: its KV is kept
    finally:
        engine.close_now()


async def test_a_worker_that_starts_again_knows_nothing_of_old_runs():
    parts = {"executor_factory": "tests.fakes:fake_executor", "text_factory": "tests.fakes:fake_text"}
    engine = AsyncEngine.start_now(EngineConfig(), worker="process", **parts)
    try:
        backend = EngineBackend(engine)
        await backend.prefetch(ASKED, "run")
        assert await pinned(engine, await backend.num_tokens(ASKED))
        os.kill(engine.worker_process_id, signal.SIGKILL)
        await backend.pin(ASKED, "run")  # to nobody, or to one who has nothing of it
        await stats_of_the_next(engine)
        await backend.free(ASKED, "run")
        backend.ended("run")
        await backend.prefetch(ASKED, "other")
        assert await pinned(engine, await backend.num_tokens(ASKED))
        backend.ended("other")
        assert await pinned(engine, 0)
        stats = await engine.stats()
        assert stats.used_tokens == 0 and stats.evictable_tokens + stats.available_tokens == stats.total_tokens
    finally:
        engine.close_now()


def test_a_compiled_program_pins_while_its_host_works_and_leaves_nothing_behind():
    engine = fake_engine()
    seen = []

    async def look_up(query: str) -> str:
        seen.append((await engine.stats()).pinned_tokens > 0)
        return "far"

    @sgl.function
    def ask(s, question):
        s += "Question: " + question + "\nThought: " + sgl.gen("thought", max_tokens=6)
        s += "\nFound: " + look_up(s["thought"])
        s += "\nAnswer: " + sgl.gen("answer", max_tokens=3)
        return s["answer"]

    try:
        ask.run("How far is the moon?", backend=EngineBackend(engine), mode="compiled", temperature=0)
        assert seen == [True]
        wait_until(lambda: asyncio.run(engine.stats()).pinned_tokens == 0)
    finally:
        engine.close_now()
