"""Tensor-parallel ranks as processes, over fake executors: every rank runs every plan, and the end of any of them ends every request."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from pathlib import Path

import psutil
import pytest

from ramet.errors import OutOfMemory, RametError
from ramet.runtime.config import EngineConfig
from ramet.runtime.engine.async_engine import AsyncEngine
from ramet.runtime.executor.executor import PendingResult, Rank
from ramet.runtime.executor.fake import FakeExecutor
from ramet.runtime.plan import BatchPlan, TokenMasks
from ramet.runtime.request import Delta, FinishKind
from tests.fakes import slow_fake_executor
from tests.runtime.engine.test_worker_process import ENDLESS, TEXT, begin, collect, ended, generation, until_alive
from tests.waiting import PATIENCE, until, wait_until

HERE = "tests.runtime.engine.test_followers"
FAILING_STEP = 20


def ranked(config: EngineConfig, rank: Rank) -> FakeExecutor:
    """Refuses plans that do not follow from those before, as every fake executor does. Ready when all ranks are."""
    meeting = Path(rank.meeting)
    (meeting / f"rank-{rank.index}").touch()
    while len(list(meeting.glob("rank-*"))) < rank.size:
        time.sleep(0.01)
    return slow_fake_executor(config)


class Failing(FakeExecutor):
    """Step `FAILING_STEP` raises, or never comes back, when its result is asked for."""

    def __init__(self, fake: FakeExecutor, error: Exception | None) -> None:
        super().__init__(fake.capacity, fake._model, step_seconds=fake._step_seconds)
        self._error = error

    def sample(self, plan: BatchPlan, masks: TokenMasks | None) -> PendingResult:
        pending = super().sample(plan, masks)
        return self if plan.step >= FAILING_STEP else pending

    def result(self) -> None:
        if self._error is None:
            threading.Event().wait()
        raise self._error


def fails_on_follower(config: EngineConfig, rank: Rank) -> FakeExecutor:
    """What a device does when memory runs out on one rank: the others wait."""
    return Failing(ranked(config, rank), OutOfMemory("no memory left on this one") if rank.index == 1 else None)


def fails_on_rank_0(config: EngineConfig, rank: Rank) -> FakeExecutor:
    fake = ranked(config, rank)
    return Failing(fake, ValueError("odd numbers")) if rank.index == 0 else fake


def hangs(config: EngineConfig, rank: Rank) -> FakeExecutor:
    return Failing(ranked(config, rank), None)


def cannot_load(config: EngineConfig, rank: Rank) -> FakeExecutor:
    if rank.index == 1:
        raise OutOfMemory("rank 1 found no memory; lower --max-total-tokens")
    return time.sleep(60)  # the others wait for it


def start(executor: str = "ranked", size: int = 2, **options) -> AsyncEngine:
    config = EngineConfig.from_options({"tp_size": size, **options})
    return AsyncEngine.start_now(config, executor_factory=f"{HERE}:{executor}", text_factory=TEXT)


def ranks_of(engine: AsyncEngine) -> list[psutil.Process]:
    return [child for child in psutil.Process(engine.worker_process_id).children() if "ramet.runtime.engine.worker_main" in child.cmdline()]


def check_ended(deltas: list[Delta], says: str) -> None:
    assert [delta.finish is not None for delta in deltas] == [False] * (len(deltas) - 1) + [True]
    finish = deltas[-1].finish
    assert (finish.kind, finish.status, finish.code) == (FinishKind.ERROR, 503, "worker_died")
    assert says in finish.message


async def test_any_rank_killed_ends_every_request_and_the_service_recovers():
    engine = start(size=3, max_total_tokens=6 * ENDLESS)
    try:
        followers = ranks_of(engine)
        assert len(followers) == 2
        tasks = await begin(engine, 6)
        os.kill(followers[1].pid, signal.SIGKILL)
        async with asyncio.timeout(PATIENCE):
            for task in tasks:
                check_ended(await task, "rank 2 ended: killed by SIGKILL")
        await until(lambda: all(ended(follower) for follower in followers))  # no rank outlives the others
        await until_alive(engine)
        whole = await engine.complete(generation("again", 30))
        assert (whole.finish.kind, whole.completion_tokens) == (FinishKind.LENGTH, 30)
    finally:
        await engine.close()


async def test_rank_0_killed_takes_the_others_along():
    engine = start(on_worker_death="exit")
    followers = ranks_of(engine)
    os.kill(engine.worker_process_id, signal.SIGKILL)
    await until(lambda: all(ended(follower) for follower in followers))
    await engine.close()


async def test_a_rank_lost_between_requests_is_noticed():
    """Nobody runs a step that would find out; the watching thread does."""
    engine = start()
    try:
        first_id = engine.worker_process_id
        os.kill(ranks_of(engine)[0].pid, signal.SIGKILL)
        await until(lambda: engine.worker_process_id != first_id and engine.health().alive)
        assert (await engine.complete(generation("next", 5))).finish.kind is FinishKind.LENGTH
    finally:
        await engine.close()


@pytest.mark.parametrize(
    ("executor", "says"), [("fails_on_follower", "rank 1 ended: no memory left on this one"), ("fails_on_rank_0", "odd numbers")]
)
async def test_a_step_that_fails_on_one_rank_ends_all(executor: str, says: str):
    """The others are in the middle of a sum that will never be whole: nothing can go on from there."""
    over: list[RametError] = []
    config = EngineConfig.from_options({"tp_size": 2, "on_worker_death": "exit"})
    engine = AsyncEngine.start_now(config, executor_factory=f"{HERE}:{executor}", text_factory=TEXT, on_end=over.append)
    try:
        async with asyncio.timeout(PATIENCE):
            check_ended(await collect(engine, generation("ill-fated")), says)
        await until(lambda: over)
        assert says in over[0].message
    finally:
        await engine.close()


async def test_a_rank_killed_while_rank_0_waits_for_the_device():
    """A collective operation on a GPU waits for a dead rank for ever, and with it the thread that waits for the step."""
    engine = start("hangs", on_worker_death="exit")
    try:
        task = asyncio.create_task(collect(engine, generation("waits")))
        await asyncio.sleep(0.5)
        assert not task.done()
        os.kill(ranks_of(engine)[0].pid, signal.SIGKILL)
        async with asyncio.timeout(PATIENCE):
            check_ended(await task, "rank 1 ended")
    finally:
        await engine.close()


def test_what_keeps_a_rank_from_loading_is_raised_here():
    with pytest.raises(OutOfMemory, match="rank 1 found no memory"):
        start("cannot_load")


def test_closing_leaves_no_rank_and_no_files():
    engine = start()
    ranks = ranks_of(engine)
    opened = [Path(part) for rank in ranks for part in rank.cmdline() if part.startswith("/") and "ramet-" in part]
    assert len(opened) == 1
    engine.close_now()
    wait_until(lambda: all(ended(rank) for rank in ranks))
    assert not any(path.exists() for path in opened)
