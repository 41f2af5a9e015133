"""The two step loops: equal output, failures that stay where they belong, commands that do not wait."""

from __future__ import annotations

import asyncio
import re
import time
from functools import partial

import pytest

from ramet.errors import InternalError
from ramet.runtime.config import EngineConfig
from ramet.runtime.engine.async_engine import AsyncEngine
from ramet.runtime.executor.fake import FakeExecutor, FakeModel, expected_output
from ramet.runtime.request import Delta, FinishKind, Generation, SamplingParams
from ramet.runtime.scheduler.scheduler import Scheduler
from tests.fakes import CONTEXT_LEN, EOS, VOCAB_SIZE, ByteTokenizer, fake_engine, fake_executor, fake_text, scripted_engine
from tests.waiting import PATIENCE, until

MODEL = FakeModel(vocab_size=VOCAB_SIZE, context_len=CONTEXT_LEN, eos_token_ids=(EOS,))
BOTH_LOOPS = pytest.mark.parametrize("serial", [False, True], ids=["overlapped", "serial"])
POISON = "\x00"


def greedy(request_id: str, text: str, max_new_tokens: int = 24, **sampling) -> Generation:
    params = SamplingParams(max_new_tokens=max_new_tokens, temperature=0.0, **sampling)
    return Generation(request_id=request_id, text=text, sampling=params)


def expected(text: str, max_new_tokens: int = 24) -> tuple[int, ...]:
    sampling = SamplingParams(max_new_tokens=max_new_tokens, temperature=0.0)
    return expected_output(MODEL, ByteTokenizer().encode(text), sampling, stop_token_ids=(EOS,))


class FailingStep:
    def result(self):
        raise InternalError("the device said no")


class PoisonedExecutor:
    """Fails every step that holds a request whose prompt has a zero byte; `broken`: every step."""

    def __init__(self, inner: FakeExecutor) -> None:
        self.inner = inner
        self.broken = False
        self.poisoned: set[str] = set()
        self.model = inner.model
        self.capacity = inner.capacity
        self.close = inner.close

    def launch(self, plan) -> None:
        self.poisoned |= {row.request_id for row in plan.rows if row.reset and 0 in row.reset.prompt_ids[1:]}
        self.inner.launch(plan)

    def sample(self, plan, masks):
        pending = self.inner.sample(plan, masks)
        fails = self.broken or any(row.request_id in self.poisoned for row in plan.rows)
        return FailingStep() if fails else pending


def poisoned_engine(serial: bool) -> tuple[AsyncEngine, PoisonedExecutor]:
    made: list[PoisonedExecutor] = []

    def factory(config: EngineConfig) -> PoisonedExecutor:
        made.append(PoisonedExecutor(fake_executor(config)))
        return made[-1]

    config = EngineConfig.from_options({"disable_overlap_schedule": serial, "on_worker_death": "exit"})
    return AsyncEngine.start_now(config, worker="thread", executor_factory=factory, text_factory=fake_text), made[0]


@BOTH_LOOPS
@pytest.mark.parametrize("page_size", [1, 16])
async def test_many_at_once_say_what_each_would_say_alone(serial, page_size):
    engine = fake_engine(disable_overlap_schedule=serial, page_size=page_size, max_running_requests=16, chunked_prefill_size=64)
    try:
        texts = [f"prompt {index % 7} " * (index % 5 + 1) for index in range(48)]
        whole = await asyncio.gather(*(engine.complete(greedy(f"r{i}", text)) for i, text in enumerate(texts)))
        assert [delta.token_ids for delta in whole] == [expected(text) for text in texts]
        stats = await engine.stats()
        assert stats.used_tokens == 0
        assert stats.cached_tokens_total > 0
        assert stats.generation_tokens_total == 48 * 24
    finally:
        await engine.close()


@BOTH_LOOPS
async def test_a_failing_step_ends_only_its_own_requests(serial):
    engine, _ = poisoned_engine(serial)
    try:
        before = await engine.complete(greedy("before", "fine"))
        failed = await engine.complete(greedy("bad", "x" + POISON))
        assert (failed.finish.kind, failed.finish.status) == (FinishKind.ERROR, 500)
        assert "the device said no" in failed.finish.message
        after = await engine.complete(greedy("after", "fine"))
        assert before.token_ids == after.token_ids == expected("fine")
        assert (await engine.stats()).used_tokens == 0
        assert await engine.flush_cache()
    finally:
        await engine.close()


@BOTH_LOOPS
async def test_good_and_bad_arrive_together_and_every_one_ends(serial):
    engine, _ = poisoned_engine(serial)
    try:
        texts = ["x" + POISON if index % 5 == 3 else f"good {index}" for index in range(30)]
        whole = await asyncio.gather(*(engine.complete(greedy(f"r{i}", text)) for i, text in enumerate(texts)))
        for text, delta in zip(texts, whole, strict=True):
            if POISON in text:
                assert delta.finish.kind is FinishKind.ERROR
            elif delta.finish.kind is not FinishKind.ERROR:  # it shared no step with a bad one
                assert delta.token_ids == expected(text)
        again = await engine.complete(greedy("again", "good 1"))
        assert again.token_ids == expected("good 1")
    finally:
        await engine.close()


@BOTH_LOOPS
async def test_an_executor_that_never_works_again_ends_the_worker(serial):
    engine, executor = poisoned_engine(serial)
    executor.broken = True
    delta = await engine.complete(greedy("a", "hello"))
    assert delta.finish.kind is FinishKind.ERROR
    await until(lambda: not engine.health().alive)
    assert "even on a request of one token" in engine.health().message
    await engine.close()


async def test_abort_takes_effect_at_the_next_step():
    engine = fake_engine(slow=True)
    try:
        deltas: list[Delta] = []
        async for delta in engine.generate(greedy("a", "hello", 2000, ignore_eos=True)):
            deltas.append(delta)
            if len(deltas) == 3:
                assert await engine.abort("a")
        assert deltas[-1].finish.kind is FinishKind.ABORT
        assert deltas[-1].finish.status == 499
        assert len(deltas) < 8
        assert not await engine.abort("a")
    finally:
        await engine.close()


async def test_leaving_a_stream_aborts_it():
    engine = fake_engine(slow=True)
    try:
        stream = engine.generate(greedy("a", "hello", 2000, ignore_eos=True))
        await anext(stream)
        await stream.aclose()
        again = asyncio.create_task(engine.complete(greedy("a", "hello", 2000, ignore_eos=True)))  # the id is free at once
        await asyncio.sleep(0.1)
        again.cancel()
        await asyncio.wait([again])
        async with asyncio.timeout(PATIENCE):
            while (stats := await engine.stats()).num_running:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert stats.used_tokens == 0 and stats.generation_tokens_total < 2000, "of 4000"
    finally:
        await engine.close()


async def test_deadline(monkeypatch):
    """It passes, by the worker's clock, once the first token is there."""
    ahead = [0.0]
    clocked = partial(Scheduler, clock=lambda: time.monotonic() + ahead[0])
    monkeypatch.setattr("ramet.runtime.engine.worker_assembly.Scheduler", clocked)
    engine = fake_engine(slow=True)
    try:
        deltas: list[Delta] = []
        async for delta in engine.generate(greedy("a", "hello", 2000, ignore_eos=True, timeout_s=1000)):
            deltas.append(delta)
            ahead[0] = 1000.0
        finish = deltas[-1].finish
        assert (finish.kind, finish.status, finish.code) == (FinishKind.ABORT, 408, "deadline_exceeded")
        assert deltas[-1].completion_tokens == sum(len(delta.token_ids) for delta in deltas) < 2000
    finally:
        await engine.close()


async def test_a_deadline_that_passes_while_the_worker_is_stuck_is_kept_by_the_front():
    engine = scripted_engine(tick=1000.0)
    try:
        delta = await engine.complete(greedy("a", "hello", timeout_s=0.1))
        assert (delta.finish.kind, delta.finish.status, delta.finish.code) == (FinishKind.ABORT, 408, "deadline_exceeded")
        assert delta.completion_tokens == len(delta.token_ids)
    finally:
        await engine.close()


async def test_an_idle_worker_does_not_spin():
    engine = fake_engine()
    try:
        await engine.complete(greedy("a", "hello"))
        used = []
        for _ in range(5):
            before = time.process_time()
            await asyncio.sleep(0.1)
            used.append(time.process_time() - before)
        assert min(used) < 0.02, "who spins does so all the time"
    finally:
        await engine.close()


async def test_constraints_hold_and_a_wrong_one_fails_alone():
    engine = fake_engine()
    try:
        pattern = r"[a-f]{3}-\d{2,4}"
        good, bad, plain = await asyncio.gather(
            engine.complete(greedy("good", "x", regex=pattern)),
            engine.complete(greedy("bad", "x", regex="(unclosed")),
            engine.complete(greedy("plain", "x")),
        )
        assert re.fullmatch(pattern, good.text)
        assert good.finish.kind is FinishKind.STOP
        assert (bad.finish.kind, bad.finish.status, bad.finish.code) == (FinishKind.ERROR, 400, "invalid_grammar")
        assert plain.token_ids == expected("x")
    finally:
        await engine.close()


async def test_log_lines_are_in_sglangs_form(caplog):
    caplog.set_level("INFO", logger="ramet")
    engine = fake_engine(decode_log_interval=5)
    try:
        await engine.complete(greedy("a", "hello"))
    finally:
        await engine.close()
    lines = [record.getMessage() for record in caplog.records]
    prefill = r"Prefill batch, #new-seq: 1, #new-token: 6, #cached-token: 0, token usage: 0\.00, #running-req: \d+, #queue-req: 0"
    decode = (
        r"Decode batch, #running-req: 1, #token: \d+, token usage: \d\.\d\d, cuda graph: False, "
        r"gen throughput \(token/s\): \d+\.\d\d, #queue-req: 0"
    )
    assert any(re.fullmatch(prefill, line) for line in lines), lines
    assert sum(re.fullmatch(decode, line) is not None for line in lines) >= 3, lines
