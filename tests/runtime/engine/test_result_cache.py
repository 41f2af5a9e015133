"""Pure generations are answered from memory, bit by bit as they were; others never are."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from ramet.errors import ConfigError
from ramet.runtime.config import EngineConfig
from ramet.runtime.engine.async_engine import AsyncEngine
from ramet.runtime.engine.result_cache import Recording, ResultCache, result_key
from ramet.runtime.request import Delta, Finish, FinishKind, Generation, LogprobParams, Request, RequestOutput, SamplingParams
from ramet.runtime.resolve import check
from tests.fakes import fake_engine

GREEDY = SamplingParams(max_new_tokens=8, temperature=0.0, ignore_eos=True)
SEEDED = SamplingParams(max_new_tokens=8, temperature=1.0, seed=7, ignore_eos=True)


def request(sampling: SamplingParams = GREEDY, **fields: Any) -> Request:
    return Request(request_id="r", prompt_ids=(1, 2, 3), sampling=sampling, seed=fields.pop("seed", sampling.seed or 0), **fields)


def ask(engine: AsyncEngine, sampling: SamplingParams, **fields: Any) -> tuple[Delta, int, int]:
    """The reply, and how many steps and results from memory there were by then."""

    async def run() -> tuple[Delta, int, int]:
        wanted = Generation(request_id="x", text="Hello, world.", sampling=sampling, logprobs=LogprobParams(start_len=0), **fields)
        delta = await engine.complete(wanted)
        stats = await engine.stats()
        return delta, stats.num_steps_total, stats.result_hits_total

    return asyncio.run(run())


@pytest.mark.parametrize("sampling", [GREEDY, SEEDED])
def test_a_pure_request_runs_once(sampling: SamplingParams) -> None:
    engine = fake_engine(enable_deterministic_inference=True, result_cache_tokens=1000)
    try:
        first, steps, _ = ask(engine, sampling)
        again, steps_again, hits = ask(engine, sampling)
        assert (again.text, again.token_ids, again.logprobs, again.prompt_logprobs, again.finish) == (
            (first.text, first.token_ids, first.logprobs, first.prompt_logprobs, first.finish)
        )
        assert len(first.token_ids) == 8 and (steps_again, hits) == (steps, 1)
        assert again.cached_tokens == again.prompt_tokens == first.prompt_tokens
        others = ({"max_new_tokens": 7}, {"min_new_tokens": 2}, {"temperature": 0.5, "seed": 8})
        assert [ask(engine, replace(sampling, **changed))[2] for changed in others] == [1, 1, 1]
        assert ask(engine, sampling, cache_namespace="tenant")[2] == 1
        asyncio.run(engine.flush_cache())
        assert ask(engine, sampling)[1] > steps_again
    finally:
        engine.close_now()


def test_without_the_option_everything_runs() -> None:
    engine = fake_engine(enable_deterministic_inference=True)
    try:
        _, steps, _ = ask(engine, GREEDY)
        _, steps_again, hits = ask(engine, GREEDY)
        assert steps_again > steps and hits == 0
    finally:
        engine.close_now()


def test_only_pure_requests_have_a_key() -> None:
    assert result_key(request()) == result_key(request(seed=5)) is not None  # greedy: the seed decides nothing
    assert result_key(request(replace(GREEDY, timeout_s=3.0))) == result_key(request())
    assert result_key(request(SEEDED)) != result_key(request(replace(SEEDED, seed=8)))
    for impure in (replace(SEEDED, seed=None), replace(GREEDY, stop=("x",)), replace(GREEDY, stop_regex=("x",))):
        assert result_key(request(impure)) is None


def test_what_was_broken_off_is_not_kept() -> None:
    for kind, kept in ((FinishKind.ABORT, False), (FinishKind.ERROR, False), (FinishKind.LENGTH, True), (FinishKind.STOP, True)):
        recording = Recording(b"k")
        assert recording.add(RequestOutput("r", (1, 2))) is None
        whole = recording.add(RequestOutput("r", (3,), finish=Finish(kind)))
        assert (whole is not None) == kept and (whole is None or whole.token_ids == (1, 2, 3))


def test_the_least_recently_used_results_go_first() -> None:
    cache = ResultCache(10)
    for name in (b"a", b"b", b"a", b"c"):
        cache.keep(name, RequestOutput("r", (1, 2, 3)))
    assert cache.find(b"b") is None and cache.find(b"a") is not None and cache.find(b"c") is not None
    cache.keep(b"long", RequestOutput("r", tuple(range(20))))
    assert all(cache.find(name) is None for name in (b"a", b"c", b"long"))


def test_without_determinism_it_is_refused() -> None:
    with pytest.raises(ConfigError, match="result_cache_tokens"):
        check(EngineConfig.from_options({"result_cache_tokens": 100}))
