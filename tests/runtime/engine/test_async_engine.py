"""The front alone, over a scripted worker: text, stops, streams, limits and terminal events."""

from __future__ import annotations

import pytest

from ramet.runtime.engine.async_engine import AsyncEngine
from ramet.runtime.request import Delta, Generation, SamplingParams
from tests.fakes import EOS, scripted_engine


def says(text: str):
    return lambda request: [*text.encode(), EOS]


async def collect(engine: AsyncEngine, generation: Generation) -> list[Delta]:
    return [delta async for delta in engine.generate(generation)]


def generation(request_id: str = "a", text: str = "hi", **sampling) -> Generation:
    return Generation(request_id=request_id, text=text, sampling=SamplingParams(**sampling))


@pytest.fixture
def speaker():
    engines = []

    def make(text: str = "hello world", **options) -> AsyncEngine:
        engines.append(scripted_engine(says(text), **options))
        return engines[-1]

    yield make
    for engine in engines:
        engine.close_now()


async def test_streaming_equals_complete(speaker):
    engine = speaker("grüße 🌱 an alle")
    deltas = await collect(engine, generation())
    whole = await engine.complete(generation())
    assert "".join(delta.text for delta in deltas) == whole.text == "grüße 🌱 an alle"
    assert sum([delta.token_ids for delta in deltas], ()) == whole.token_ids
    assert len(deltas) > 3
    assert [delta.finish is not None for delta in deltas] == [False] * (len(deltas) - 1) + [True]
    assert whole.finish.matched == EOS
    assert whole.prompt_tokens == 3
    assert whole.completion_tokens == len("grüße 🌱 an alle".encode()) + 1
    assert 0 < whole.first_token_latency <= whole.e2e_latency
