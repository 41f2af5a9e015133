"""The worker in a process of its own: it dies in every way, and every request still ends exactly once."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from ramet.errors import ModelNotFound, OutOfMemory, RametError, WorkerDied
from ramet.runtime.config import EngineConfig
from ramet.runtime.engine.async_engine import AsyncEngine
from ramet.runtime.executor.fake import FakeExecutor
from ramet.runtime.request import Delta, FinishKind, Generation, SamplingParams

TEXT = "tests.fakes:fake_text"


def start(executor: str = "tests.fakes:slow_fake_executor", **options) -> AsyncEngine:
    parts = {"executor_factory": executor, "text_factory": TEXT}
    return AsyncEngine.start_now(EngineConfig.from_options(options), **parts)


def generation(request_id: str, max_new_tokens: int = 400) -> Generation:
    sampling = SamplingParams(max_new_tokens=max_new_tokens, temperature=0.0, ignore_eos=True)
    return Generation(request_id=request_id, text=f"say {request_id}", sampling=sampling)


async def collect(engine: AsyncEngine, wanted: Generation) -> list[Delta]:
    return [delta async for delta in engine.generate(wanted)]


async def until_alive(engine: AsyncEngine, timeout: float = 15.0) -> None:
    async with asyncio.timeout(timeout):
        while not engine.health().alive:  # noqa: ASYNC110
            await asyncio.sleep(0.02)


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
    engine = start()
    try:
        first_id = engine.worker_process_id
        tasks = [asyncio.create_task(collect(engine, generation(f"r{index}"))) for index in range(8)]
        await asyncio.sleep(0.3)
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
    async with asyncio.timeout(10):
        while not ended:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    assert isinstance(ended[0], WorkerDied)
    with pytest.raises(WorkerDied):
        await engine.complete(generation("late"))
    await engine.close()


async def test_a_worker_that_hangs_counts_as_dead():
    engine = start(watchdog_timeout=1.0)
    try:
        task = asyncio.create_task(collect(engine, generation("hung")))
        await asyncio.sleep(0.3)
        os.kill(engine.worker_process_id, signal.SIGSTOP)
        deltas = await asyncio.wait_for(task, 15)
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
        async with asyncio.timeout(40):
            await asyncio.gather(killer(), *(client(index) for index in range(12)))
        assert len(ends) == 12 * 6
        assert set(ends.values()) == {1}
        await until_alive(engine)
        stats = await engine.stats()
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
    deadline = time.monotonic() + 5
    while worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE


async def test_it_says_how_much_memory_it_occupies() -> None:
    engine = start()
    try:
        said = (await engine.stats()).resident_bytes
        process_id = engine._supervisor.process_id
        assert process_id is not None
        assert said == pytest.approx(psutil.Process(process_id).memory_info().rss, rel=0.2)
    finally:
        await engine.close()
