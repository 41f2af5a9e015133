"""The worker in a process of its own: it dies in every way, and every request still ends exactly once."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest

from ramet.errors import ModelNotFound, OutOfMemory, RametError, WorkerDied
from ramet.runtime.config import EngineConfig
from ramet.runtime.engine.async_engine import AsyncEngine
from ramet.runtime.executor.fake import FakeExecutor
from ramet.runtime.request import Delta, EngineStats, FinishKind, Generation, SamplingParams
from tests.waiting import PATIENCE, until, wait_until

TEXT = "tests.fakes:fake_text"
ENDLESS = 4000
"""Tokens that take longer than a busy machine is late."""


def start(executor: str = "tests.fakes:slow_fake_executor", **options) -> AsyncEngine:
    parts = {"executor_factory": executor, "text_factory": TEXT}
    return AsyncEngine.start_now(EngineConfig.from_options(options), **parts)


def generation(request_id: str, max_new_tokens: int = ENDLESS) -> Generation:
    sampling = SamplingParams(max_new_tokens=max_new_tokens, temperature=0.0, ignore_eos=True)
    return Generation(request_id=request_id, text=f"say {request_id}", sampling=sampling)


async def collect(engine: AsyncEngine, wanted: Generation) -> list[Delta]:
    return [delta async for delta in engine.generate(wanted)]


async def begin(engine: AsyncEngine, count: int) -> list[asyncio.Task[list[Delta]]]:
    """So many generations without end, each with its first token."""
    streams = [engine.generate(generation(f"r{index}")) for index in range(count)]
    first = await asyncio.gather(*(anext(stream) for stream in streams))

    async def rest(index: int) -> list[Delta]:
        return [first[index], *[delta async for delta in streams[index]]]

    return [asyncio.create_task(rest(index)) for index in range(count)]


async def until_alive(engine: AsyncEngine) -> None:
    await until(lambda: engine.health().alive)


async def stats_of_the_next(engine: AsyncEngine) -> EngineStats:
    """Of the worker that comes after one whose end may not have been noticed yet."""
    async with asyncio.timeout(PATIENCE):
        while True:
            with contextlib.suppress(WorkerDied):
                return await engine.stats()
            await asyncio.sleep(0.02)


def ended(process: psutil.Process) -> bool:
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def out_of_memory(config: EngineConfig) -> FakeExecutor:
    raise OutOfMemory("asked for 9 GiB, 1 GiB was free; lower --max-total-tokens")


def no_model(config: EngineConfig) -> FakeExecutor:
    raise ModelNotFound("no such model; `ramet model fetch it`", param="model_path")


def broken(config: EngineConfig) -> FakeExecutor:
    raise ZeroDivisionError("surprise")


def dies_loading(config: EngineConfig) -> FakeExecutor:
    os._exit(7)


@pytest.mark.parametrize(
    ("factory", "error", "message"),
    [
        ("out_of_memory", OutOfMemory, "lower --max-total-tokens"),
        ("no_model", ModelNotFound, "ramet model fetch it"),
        ("broken", RametError, "ZeroDivisionError: surprise"),
        ("dies_loading", RametError, "exit code 7"),
    ],
)
def test_what_keeps_a_worker_from_starting_is_raised_here(factory, error, message):
    with pytest.raises(error, match=message):
        start(f"tests.runtime.engine.test_worker_process:{factory}")


async def test_killed_in_the_middle_then_restarted():
    engine = start(max_total_tokens=8 * ENDLESS)
    may_start, launch = threading.Event(), engine._supervisor._launch
    engine._supervisor._launch = lambda: launch() if may_start.wait(PATIENCE) else None
    try:
        first_id = engine.worker_process_id
        tasks = await begin(engine, 8)
        os.kill(first_id, signal.SIGKILL)
        for deltas in await asyncio.gather(*tasks):
            assert [delta.finish is not None for delta in deltas] == [False] * (len(deltas) - 1) + [True]
            finish = deltas[-1].finish
            assert (finish.kind, finish.status, finish.code) == (FinishKind.ERROR, 503, "worker_died")
            assert "SIGKILL" in finish.message
            assert deltas[-1].completion_tokens > 0
        assert not engine.health().alive
        with pytest.raises(WorkerDied, match="try again"):
            await engine.complete(generation("early"))
        may_start.set()
        await until_alive(engine)
        assert engine.worker_process_id != first_id
        assert (await engine.complete(generation("r0", 5))).finish.kind is FinishKind.LENGTH
    finally:
        await engine.close()


async def test_exit_by_option():
    ended: list[RametError] = []
    parts = {"executor_factory": "tests.fakes:slow_fake_executor", "text_factory": TEXT}
    engine = await AsyncEngine.start(EngineConfig.from_options({"on_worker_death": "exit"}), on_end=ended.append, **parts)
    os.kill(engine.worker_process_id, signal.SIGKILL)
    await until(lambda: ended)
    assert isinstance(ended[0], WorkerDied)
    with pytest.raises(WorkerDied):
        await engine.complete(generation("late"))
    await engine.close()


async def test_a_worker_that_hangs_counts_as_dead():
    engine = start(watchdog_timeout=1.0)
    try:
        [task] = await begin(engine, 1)
        with contextlib.suppress(ProcessLookupError):  # a machine that stands still may have hung it before
            os.kill(engine.worker_process_id, signal.SIGSTOP)
        deltas = await asyncio.wait_for(task, PATIENCE)
        assert deltas[-1].finish.code == "worker_died"
        assert "watchdog" in deltas[-1].finish.message
    finally:
        await engine.close()


async def test_exactly_one_end_under_random_kills_and_aborts():
    engine = start()
    rng = random.Random(7)
    ends: dict[str, int] = {}

    async def client(index: int) -> None:
        for turn in range(6):
            name = f"c{index}-{turn}"
            try:
                async for delta in engine.generate(generation(name, rng.choice([1, 20, 200]))):
                    ends[name] = ends.get(name, 0) + (delta.finish is not None)
                    if rng.random() < 0.02:
                        await engine.abort(name)
            except WorkerDied:
                ends[name] = ends.get(name, 0) + 1
                await until_alive(engine)

    async def killer() -> None:
        for _ in range(2):
            await asyncio.sleep(0.4)
            await until_alive(engine)
            with contextlib.suppress(ProcessLookupError):
                os.kill(engine.worker_process_id, signal.SIGKILL)

    try:
        async with asyncio.timeout(PATIENCE):
            await asyncio.gather(killer(), *(client(index) for index in range(12)))
        assert len(ends) == 12 * 6
        assert set(ends.values()) == {1}
        stats = await stats_of_the_next(engine)
        assert (stats.num_running, stats.num_waiting, stats.used_tokens) == (0, 0, 0)
    finally:
        await engine.close()


def test_closing_leaves_no_process_and_no_files():
    engine = start()
    process = psutil.Process(engine.worker_process_id)
    directory = engine._supervisor._worker._address.directory
    engine.close_now()
    engine.close_now()
    assert not process.is_running()
    assert not Path(directory).exists()


def test_the_worker_ends_when_its_front_is_killed(tmp_path):
    script = (
        "import time\nfrom tests.runtime.engine.test_worker_process import start\n"
        "engine = start()\nprint(engine.worker_process_id, flush=True)\ntime.sleep(60)\n"
    )
    front = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    worker = psutil.Process(int(front.stdout.readline()))
    front.kill()
    front.wait()
    front.stdout.close()
    wait_until(lambda: ended(worker))


async def test_it_says_how_much_memory_it_occupies() -> None:
    engine = start()
    try:
        said = (await engine.stats()).resident_bytes
        process_id = engine._supervisor.process_id
        assert process_id is not None
        assert said == pytest.approx(psutil.Process(process_id).memory_info().rss, rel=0.2)
    finally:
        await engine.close()
