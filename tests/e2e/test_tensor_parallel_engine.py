"""The embedded model on two ranks over Gloo: transformers' tokens, and an orderly end when a rank is killed in the middle of a sum."""

from __future__ import annotations

import asyncio
import os
import signal

import psutil
import pytest

from benchmarks.greedy_parity import compare, load_reference
from ramet.errors import RametError
from ramet.runtime.config import EngineConfig
from ramet.runtime.engine.async_engine import AsyncEngine
from ramet.runtime.request import FinishKind, Generation, SamplingParams
from tests.waiting import PATIENCE, until

pytestmark = pytest.mark.model
NUM_TOKENS = 8
OPTIONS = {"tp_size": 2, "max_total_tokens": 4096, "on_worker_death": "exit", "log_level": "warning"}


async def test_two_ranks():
    over: list[RametError] = []
    engine = await AsyncEngine.start(EngineConfig.from_options(OPTIONS), on_end=over.append)
    try:
        references = load_reference()[::10]
        outputs = await asyncio.gather(*(complete(engine, i, reference.prompt, NUM_TOKENS) for i, reference in enumerate(references)))
        ties, wrong = compare(references, [list(delta.token_ids) for delta in outputs], NUM_TOKENS)
        assert wrong == []
        assert ties <= 1

        running = [engine.generate(generation(100 + i, reference.prompt, 500)) for i, reference in enumerate(references)]
        await asyncio.gather(*(anext(stream) for stream in running))
        children = psutil.Process(engine.worker_process_id).children()
        (follower,) = (child for child in children if "ramet.runtime.engine.worker_main" in child.cmdline())
        os.kill(follower.pid, signal.SIGKILL)
        async with asyncio.timeout(PATIENCE):
            for stream in running:
                *_, delta = [delta async for delta in stream]
                assert (delta.finish.kind, delta.finish.status, delta.finish.code) == (FinishKind.ERROR, 503, "worker_died")
                assert "rank 1 ended: killed by SIGKILL" in delta.finish.message
        await until(lambda: over)
    finally:
        await engine.close()


async def complete(engine, number, prompt, max_new_tokens):
    return await engine.complete(generation(number, prompt, max_new_tokens))


def generation(number, prompt, max_new_tokens):
    sampling = SamplingParams(max_new_tokens=max_new_tokens, temperature=0.0, ignore_eos=max_new_tokens > NUM_TOKENS)
    return Generation(request_id=f"r{number}", input_ids=tuple(prompt), sampling=sampling)
