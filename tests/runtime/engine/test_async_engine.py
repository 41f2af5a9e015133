"""The front alone, over a scripted worker: text, stops, streams, limits and terminal events."""

from __future__ import annotations

import asyncio
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ramet.errors import ContextTooLong, InvalidRequest, QueueFull, WorkerDied
from ramet.runtime.engine.async_engine import AsyncEngine
from ramet.runtime.engine.delta_assembler import DeltaAssembler, joined
from ramet.runtime.engine.request_table import Stream
from ramet.runtime.request import Delta, Finish, FinishKind, Generation, LogprobParams, Request, RequestOutput, SamplingParams
from tests.fakes import EOS, ByteTokenizer, Script, scripted_engine
from tests.waiting import PATIENCE


def says(text: str) -> Script:
    return lambda request: [*text.encode(), EOS]


async def collect(engine: AsyncEngine, wanted: Generation) -> list[Delta]:
    return [delta async for delta in engine.generate(wanted)]


def generation(request_id: str = "a", text: str = "hi", **sampling) -> Generation:
    return Generation(request_id=request_id, text=text, sampling=SamplingParams(**sampling))


@pytest.fixture
def released(monkeypatch: pytest.MonkeyPatch) -> list[Delta]:
    """Every delta as it goes on its way. Those that wait for a reader at the same time reach it as one."""
    deltas: list[Delta] = []
    push = Stream.push

    def noted(stream: Stream, delta: Delta) -> None:
        deltas.append(delta)
        push(stream, delta)

    monkeypatch.setattr(Stream, "push", noted)
    return deltas


@pytest.fixture
def speaker():
    engines = []

    def make(text: str = "hello world", **options) -> AsyncEngine:
        engines.append(scripted_engine(says(text), **options))
        return engines[-1]

    yield make
    for engine in engines:
        engine.close_now()


async def test_streaming_equals_complete(speaker, released):
    engine = speaker("grüße 🌱 an alle")
    deltas = await collect(engine, generation())
    assert len(released) > 3
    whole = await engine.complete(generation())
    assert "".join(delta.text for delta in deltas) == whole.text == "grüße 🌱 an alle"
    assert sum([delta.token_ids for delta in deltas], ()) == whole.token_ids
    assert [delta.finish is not None for delta in deltas] == [False] * (len(deltas) - 1) + [True]
    assert whole.finish.matched == EOS
    assert whole.prompt_tokens == 3
    assert whole.completion_tokens == len("grüße 🌱 an alle".encode()) + 1
    assert 0 < whole.first_token_latency <= whole.e2e_latency


async def test_stop_string_across_tokens(speaker):
    engine = speaker("one two STOP three")
    for stop, text in [(("STOP",), "one two "), (("two S", "xx"), "one "), (("o STO",), "one tw")]:
        deltas = await collect(engine, generation(stop=stop))
        assert "".join(delta.text for delta in deltas) == text
        assert deltas[-1].finish == Finish(FinishKind.STOP, matched=stop[0])
        assert sum(delta.finish is not None for delta in deltas) == 1
        spoken = bytes(token for delta in deltas for token in delta.token_ids).decode()
        assert spoken == text + stop[0]
    kept = await engine.complete(generation(stop=("STOP",), no_stop_trim=True))
    assert kept.text == "one two STOP"
    assert (await engine.complete(generation(stop_regex=(r"t\w+o ",)))).text == "one "


async def test_stop_token_is_not_text_unless_wished(speaker):
    engine = speaker("abc!def")
    assert (await engine.complete(generation(stop_token_ids=(ord("!"),)))).text == "abc"
    assert (await engine.complete(generation(stop_token_ids=(ord("!"),), no_stop_trim=True))).text == "abc!"
    shown = await engine.complete(generation(stop_token_ids=(ord("!"),)))
    assert (shown.finish.matched, shown.token_ids[-1]) == (ord("!"), ord("!"))


async def test_special_tokens_are_shown_on_wish(speaker):
    engine = scripted_engine(lambda request: [*b"hey", 258, *b"you"])
    assert (await engine.complete(generation())).text == "heyyou"
    assert (await engine.complete(generation(skip_special_tokens=False))).text == "hey<begin>you"
    await engine.close()


async def test_logprobs_stay_aligned_with_tokens(speaker):
    engine = speaker("one STOP two")
    wanted = Generation(request_id="a", text="hi", sampling=SamplingParams(stop=("STOP",)), logprobs=LogprobParams(top=1))
    deltas = await collect(engine, wanted)
    for delta in deltas:
        assert tuple(entry.token_id for entry in delta.logprobs) == delta.token_ids


@pytest.mark.parametrize(
    ("wanted", "error", "param"),
    [
        (generation(text="x" * 5000), ContextTooLong, "max_new_tokens"),
        (generation(max_new_tokens=5000), ContextTooLong, "max_new_tokens"),
        (Generation(request_id="a", input_ids=()), InvalidRequest, "input_ids"),
        (Generation(request_id="a", input_ids=(5, 260)), InvalidRequest, "input_ids"),
        (Generation(request_id="a", input_ids=(5, -1)), InvalidRequest, "input_ids"),
        (Generation(request_id="a"), InvalidRequest, "text"),
        (Generation(request_id="a", text="x", input_ids=(1,)), InvalidRequest, "text"),
        (generation(logit_bias={999: 1.0}), InvalidRequest, "logit_bias"),
        (generation(stop_token_ids=(999,)), InvalidRequest, "stop_token_ids"),
        (generation(regex="a", json_schema="{}"), InvalidRequest, "json_schema"),
        (generation(stop_regex=("(",)), InvalidRequest, "stop_regex"),
    ],
)
async def test_illegal_requests_are_refused_before_the_first_delta(speaker, wanted, error, param):
    engine = speaker()
    with pytest.raises(error) as raised:
        await engine.complete(wanted)
    assert raised.value.param == param
    assert (await engine.complete(generation())).text == "hello world"


async def test_ids_in_use_are_refused_and_free_ones_are_not(speaker):
    engine = speaker("xxxy" * 5000)
    stream = engine.generate(generation())
    await anext(stream)
    with pytest.raises(InvalidRequest, match="in use"):
        await engine.complete(generation())
    await stream.aclose()
    assert (await engine.complete(generation(stop_token_ids=(ord("y"),)))).text == "xxx"


async def test_queue_limit():
    engine = scripted_engine(tick=0.01, max_queued_requests=0)
    streams = [engine.generate(generation(f"r{index}", max_new_tokens=4000)) for index in range(64)]
    await asyncio.gather(*(anext(stream) for stream in streams))
    with pytest.raises(QueueFull) as raised:
        await engine.complete(generation("one too many"))
    assert raised.value.retry_after > 0
    await asyncio.gather(*(stream.aclose() for stream in streams))
    assert (await engine.complete(generation("now"))).finish.kind is FinishKind.LENGTH
    await engine.close()


async def test_stream_interval(speaker, released):
    engine = speaker("x" * 40, stream_interval=8)
    deltas = await collect(engine, generation())
    assert [len(delta.token_ids) for delta in released] == [1, 8, 8, 8, 8, 8]
    assert sum(len(delta.token_ids) for delta in deltas) == 41


async def test_closing_ends_what_runs():
    engine = scripted_engine(tick=0.01)
    task = asyncio.create_task(engine.complete(generation(max_new_tokens=4000)))
    await asyncio.sleep(0.05)
    await engine.close()
    delta = await task
    assert (delta.finish.kind, delta.finish.status) == (FinishKind.ERROR, 503)
    with pytest.raises(WorkerDied, match="shut down"):
        await engine.complete(generation())


async def test_abort_all_and_flush(speaker):
    engine = scripted_engine(tick=0.01)
    tasks = [asyncio.create_task(engine.complete(generation(f"r{index}", max_new_tokens=4000))) for index in range(5)]
    await asyncio.sleep(0.05)
    assert not await engine.flush_cache()
    assert await engine.abort_all() == 5
    assert {delta.finish.kind for delta in await asyncio.gather(*tasks)} == {FinishKind.ABORT}
    assert await engine.flush_cache()
    await engine.close()


def test_several_event_loops_in_several_threads():
    engine = scripted_engine(says("from any thread"))
    texts: list[str] = []

    async def many(name: str) -> None:
        texts.extend(delta.text for delta in await asyncio.gather(*(engine.complete(generation(f"{name}-{i}")) for i in range(8))))

    threads = [threading.Thread(target=lambda name=name: asyncio.run(many(name))) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert texts == ["from any thread"] * 32
    engine.close_now()


async def test_seeds_are_fresh_or_repeatable():
    seen: list[int] = []

    def note(request: Request) -> list[int]:
        seen.append(request.seed)
        return [EOS]

    async def seeds(**options) -> list[int]:
        seen.clear()
        engine = scripted_engine(note, **options)
        for seed in (None, None, 5):
            await engine.complete(generation(seed=seed))
        await engine.close()
        return list(seen)

    fresh, fresh_again = await seeds(), await seeds()
    fixed, fixed_again = await seeds(random_seed=3), await seeds(random_seed=3)
    assert fixed == fixed_again
    assert fresh[2] == fixed[2] == 5
    assert len({*fresh[:2], *fresh_again[:2], *fixed[:2]}) == 6


@settings(deadline=None, max_examples=150)
@given(
    text=st.text(alphabet="ab🌱é", max_size=24),
    stops=st.lists(st.text(alphabet="ab🌱", min_size=1, max_size=4), max_size=2),
    cuts=st.lists(st.integers(1, 5), min_size=40, max_size=40),
    interval=st.sampled_from([1, 3, None]),
    trim=st.booleans(),
)
def test_how_tokens_are_cut_into_steps_changes_nothing(text, stops, cuts, interval, trim):
    """The outcome equals a search in the whole text, for every way in which tokens may arrive together."""
    ids = tuple(text.encode())
    sampling = SamplingParams(stop=tuple(stops), no_stop_trim=not trim)
    request = Request(request_id="w", prompt_ids=(1,), sampling=sampling, seed=0, arrival_time=0.0)
    assembler = DeltaAssembler(request, "r", ByteTokenizer().token_bytes(), interval)
    deltas, at = [], 0
    for cut in [*cuts, len(ids)]:  # the last step brings what is left
        step, at = ids[at : at + cut], at + cut
        finish = Finish(FinishKind.LENGTH) if at >= len(ids) else None
        delta = assembler.push(RequestOutput("w", step, finish=finish))
        if delta is not None:
            deltas.append(delta)
        if (delta is not None and delta.finish is not None) or finish is not None:
            break
    whole = joined(deltas)
    ends = [(text.find(stop) + len(stop), -len(stop), stop) for stop in stops if stop in text]
    if not ends:
        assert (whole.text, whole.finish.kind, whole.token_ids) == (text, FinishKind.LENGTH, ids)
        return
    end, _, stop = min(ends)
    assert whole.finish == Finish(FinishKind.STOP, matched=stop)
    assert whole.text == (text[: end - len(stop)] if trim else text[:end])
    assert whole.token_ids == tuple(text[:end].encode())
    assert whole.completion_tokens == len(whole.token_ids)
