"""Many runs on one loop in one thread; batches; host calls."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import threading
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

import ramet as sgl
from ramet.errors import InvalidRequest, QueueFull
from ramet.lang.progress import PlainBar
from ramet.program.backend import GenerateCall, GenerateChunk
from ramet.program.scripted import ScriptedBackend
from tests.lang.unhurried import Unhurried
from tests.waiting import PATIENCE


@sgl.function
def three_steps(s: Any, index: int) -> Any:
    for step in range(3):
        s += f"{index}.{step}:" + sgl.gen("x", max_tokens=4)
        if not s["x"]:
            break
    return index, threading.get_ident()


def test_a_thousand_live_runs_on_one_loop() -> None:
    before = threading.active_count()
    few = sum(_live(100)[0] for _ in range(10))
    many, results = _live(1000)
    assert [result.value[0] for result in results] == list(range(1000))
    assert len({result.value[1] for result in results}) == 1
    assert threading.active_count() <= before + 1
    assert many < 5 * few, "each of many costs about what each of few does: tenfold, if each looked at all"


def _live(count: int) -> tuple[float, list[Any]]:
    """Processor seconds and results of so many runs, which are all alive at every step: no generation ends until all have begun."""
    together = asyncio.Barrier(count)

    class Meeting(ScriptedBackend):
        async def generate(self, call: GenerateCall) -> AsyncIterator[GenerateChunk]:
            await together.wait()
            async for chunk in super().generate(call):
                yield chunk

    backend = Meeting(lambda call: "word")
    began = time.process_time()
    results = list(three_steps.run_batch([{"index": i} for i in range(count)], num_threads=count, backend=backend))
    return time.process_time() - began, results


def test_batch_arguments_order_and_concurrency() -> None:
    @sgl.function
    def echo(s: Any, a: str, b: str = "-") -> Any:
        s += a + b + sgl.gen("x")
        return a + b

    backend = Unhurried()
    results = echo.run_batch([{"a": "1"}, ("2", "3"), ["4"], {"a": "5", "b": "6"}], num_threads=2, backend=backend, temperature=0)
    assert [result.value for result in results] == ["1-", "23", "4-", "56"]
    assert backend.peak_live == 2
    assert all(call.sampling == {"temperature": 0} for call in backend.calls)
    assert echo.run_batch([], backend=backend) == []
    with pytest.raises(TypeError, match=r"batch_kwargs\[1\].*missing a required argument: 'a'"):
        echo.run_batch([{"a": "1"}, {"b": "1"}], backend=backend)
    assert [result.value for result in echo.run_batch([{}, {"b": "2"}], a="1", backend=backend)] == ["1-", "12"], "what all share"
    with pytest.raises(InvalidRequest, match="num_threads"):
        echo.run_batch([("1",)], num_threads=0, backend=backend)


def failing(call: GenerateCall) -> str:
    if "7" in call.conversation.parts[0].value:
        raise QueueFull("no room")
    return "fine"


@sgl.function
def numbered(s: Any, index: int) -> Any:
    s += f"number {index}" + sgl.gen("x")
    return s["x"]


def test_one_failure_cancels_the_batch_or_is_returned() -> None:
    with pytest.raises(QueueFull, match="no room"):
        numbered.run_batch([{"index": i} for i in range(10)], backend=ScriptedBackend(failing))
    results = numbered.run_batch([{"index": i} for i in range(10)], backend=ScriptedBackend(failing), return_exceptions=True)
    assert [isinstance(result, QueueFull) for result in results] == [i == 7 for i in range(10)]
    assert results[0].value == "fine"


def test_generator_style_and_progress_bars(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    results = numbered.run_batch([{"index": i} for i in range(6)], backend=ScriptedBackend(), generator_style=True, progress_bar=True)
    assert next(results)["x"]
    assert len(list(results)) == 5
    assert "6/6" in capsys.readouterr().err
    monkeypatch.setitem(__import__("sys").modules, "tqdm", None)
    numbered.run_batch([{"index": 1}, {"index": 2}], backend=ScriptedBackend(), progress_bar=True)
    assert "2/2" in capsys.readouterr().err
    PlainBar(0).close()


async def test_async_batches() -> None:
    backend = ScriptedBackend(["a", "b", "c"])
    results = await numbered.arun_batch([{"index": 1}, {"index": 2}], backend=backend)
    assert [result.value for result in results] == ["a", "b"]
    stream = await numbered.arun_batch([{"index": 3}], backend=backend, generator_style=True)
    assert [result.value async for result in stream] == ["c"]


def test_host_calls_run_together_off_the_loop() -> None:
    label: contextvars.ContextVar[str] = contextvars.ContextVar("label", default="unset")
    in_threads, on_loop = threading.Barrier(4, timeout=PATIENCE), asyncio.Barrier(4)

    @sgl.host
    def tool(x: int) -> tuple[int, int, str]:
        if x < 4:
            in_threads.wait()
        return x, threading.get_ident(), label.get()

    @sgl.host
    async def async_tool(x: int) -> int:
        await on_loop.wait()
        return x

    @sgl.function
    def program(s: Any, index: int) -> Any:
        label.set(f"run {index}")
        found, thread, seen = tool(index)
        return found, async_tool(index), sgl.call(len, "abc"), thread, threading.get_ident(), seen  # type: ignore[unused-ignore]

    values = [r.value for r in program.run_batch([{"index": i} for i in range(4)], backend=ScriptedBackend())]
    assert [v[:3] for v in values] == [(i, i, 3) for i in range(4)]
    assert all(v[3] != v[4] for v in values)
    assert [v[5] for v in values] == [f"run {i}" for i in range(4)]
    assert tool(4)[1] == threading.get_ident()


def test_host_failures_arrive_in_the_body() -> None:
    @sgl.function
    def program(s: Any) -> Any:
        try:
            sgl.call(int, "x")
        except ValueError as error:
            return str(error)

    assert "invalid literal" in program.run(backend=ScriptedBackend()).value


def test_a_host_call_cannot_append() -> None:
    @sgl.function
    def program(s: Any) -> None:
        sgl.call(s.__iadd__, "from a thread")

    with pytest.raises(InvalidRequest, match="not from another thread"):
        program.run(backend=ScriptedBackend())


def test_a_body_that_blocks_the_loop_is_named_in_the_log(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ramet.lang.bridge.SLOW_STEP_SECONDS", 0.01)

    @sgl.function
    def blocking(s: Any) -> None:
        time.sleep(0.03)

    with caplog.at_level(logging.WARNING, "ramet"):
        blocking.run(backend=ScriptedBackend())
    assert "blocking held the event loop" in caplog.text and "sgl.host" in caplog.text


def test_bind_cache_and_trace() -> None:
    runs: list[int] = []

    @sgl.function
    def few_shot(s: Any, topic: str, question: str) -> Any:
        runs.append(1)
        s += sgl.system("You know all about " + topic)
        s += sgl.user("Question: " + question)
        s += sgl.assistant(sgl.gen("answer"))
        return s["answer"]

    bound = few_shot.bind(topic="rivers")
    assert not runs
    assert bound.trace().text() == "SYSTEM:You know all about rivers\n"
    assert len(few_shot.trace(topic="a", question="b").calls) == 1
    backend = ScriptedBackend(["yes"])
    bound.cache(backend)
    assert [p.value for p in backend.prefilled[0].parts] == ["system", "You know all about rivers", "system"]
    runs.clear()
    assert bound.run(question="why?", backend=backend).value == "yes"
    assert runs == [1]
    assert bound.trace(question="why?").calls
