"""Running programs: what runs together, what a run may use, and what a hostile program costs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from ramet.compiler.default_order import DEFAULT
from ramet.ir.module import Module
from ramet.lang.function import Function
from ramet.program.backend import PLAIN_FORMAT, GenerateCall, GenerateChunk
from ramet.program.budget import Budget
from ramet.program.failure import ProgramFailed
from ramet.program.interpreter import ProgramResult, run_program
from ramet.program.timeline import Event
from tests.compiler.language import HashBackend, Host, compiled, define
from tests.waiting import turns, until


class SlowBackend(HashBackend):
    """Counts the generations that run at the same time. Each takes so many turns of the event loop."""

    def __init__(self, num_turns: int = 100) -> None:
        super().__init__()
        self._num_turns = num_turns
        self.live = self.peak = self.aborted = 0

    async def generate(self, call: GenerateCall) -> AsyncIterator[GenerateChunk]:
        self.live += 1
        self.peak = max(self.peak, self.live)
        done = False
        try:
            await turns(self._num_turns)
            async for chunk in super().generate(call):
                done = True
                yield chunk
        finally:
            self.live -= 1
            self.aborted += not done


async def run(
    source: str, backend: Any = None, *, budget: Budget | None = None, module: Module | None = None, **arguments: Any
) -> ProgramResult:
    program = compiled(define(source, tool=len))
    return await run_program(module or program.module, arguments, backend or HashBackend(), host=Host(program), budget=budget)


FORKS = """
@function
def main(s, width):
    forks = s.fork(width)
    for i, f in enumerate(forks):
        f += f"branch {i}" + sgl.gen("x")
    return [f["x"] for f in forks]
"""
CALLS = """
@function
def judge(s, topic):
    s += topic + sgl.gen("score")
    if "a" in s["score"]:
        s += sgl.gen("more")
    return s["score"]

@function
def main(s, topics):
    found = []
    for topic in topics:
        found.append(judge.run(topic).value)
    return found
"""


async def test_forks_run_together_without_any_pass() -> None:
    backend = SlowBackend()
    program = compiled(define(FORKS))
    result = await run_program(program.lowered, {"width": 8}, backend)
    assert backend.peak == 8
    assert len(result.value) == 8


async def test_parallelize_runs_independent_programs_together_and_changes_nothing_else() -> None:
    program = compiled(define(CALLS))
    serial, together = SlowBackend(), SlowBackend()
    topics = {"topics": [f"topic {i}" for i in range(6)]}
    slow = await run_program(DEFAULT.without(["parallelize"]).run(program.lowered, _notes())[0], topics, serial)
    fast = await run_program(program.module, topics, together)
    assert (serial.peak, together.peak) == (1, 6)
    assert slow.value == fast.value
    assert sorted(serial.prompts) == sorted(together.prompts)


PAIRS = """
@function
def pair(s, topic):
    s += sgl.user(topic) + sgl.assistant(sgl.gen("a"))
    s += sgl.user("More.") + sgl.assistant(sgl.gen("b"))
    return s["a"], {"more": s["b"]}


@function
def main(s, topics):
    found = [pair.run(topic).value for topic in topics]
    return [a + b["more"] for a, b in found]
"""


async def test_a_list_or_dict_of_what_is_being_generated_holds_nobody_up() -> None:
    """The pairs are made in place, after inlining."""
    program = compiled(define(PAIRS))
    together, topics = SlowBackend(), {"topics": ["x", "y", "z"]}
    result = await run_program(program.module, topics, together)
    assert together.peak == 3
    assert result.value == (await run_program(program.lowered, topics, SlowBackend())).value


def _notes() -> Any:
    from ramet.compiler.pipeline import Notes

    return Notes()


LOOP = "@function\ndef main(s, top):\n    x = 0\n    while x < top:\n        x += 1\n"
HOSTILE = {
    "steps": ("@function\ndef main(s):\n    while True:\n        pass\n", Budget(steps=5_000), "steps"),
    "generations": (
        "@function\ndef main(s):\n    while True:\n        s += sgl.gen('x')\n        y = s['x']\n",
        Budget(generations=20),
        "generations",
    ),
    "tokens": (
        "@function\ndef main(s):\n    for i in range(1000):\n        s += 'go' + sgl.gen('x')\n        y = s['x']\n",
        Budget(tokens=50),
        "tokens",
    ),
    "forks": (
        "@function\ndef main(s):\n    for i in range(100):\n        f = s.fork(501)\n",
        Budget(forks=500, steps=10_000),
        "forks alive",
    ),
    "nesting": (
        "@function\ndef main(s, depth):\n    r = main(s, depth + 1)\n    return r\n",
        Budget(nesting=10),
        "programs inside programs",
    ),
    "text": ("@function\ndef main(s):\n    x = 'ab'\n    while True:\n        x = x + x\n", Budget(), "more than the"),
    "multiply": ("@function\ndef main(s):\n    n = 10 ** 9\n    return 'a' * n\n", Budget(), "more than the"),
    "power": ("@function\ndef main(s):\n    n = 10 ** 9\n    return n ** n\n", Budget(), "bits"),
    "exponential list": (
        "@function\ndef main(s):\n    x = [1]\n    for i in range(60):\n        x = [x, x]\n    return str(x)\n",
        Budget(),
        "too large",
    ),
    "cyclic list": ("@function\ndef main(s):\n    x = []\n    x.append(x)\n    return x\n", Budget(), "too large"),
    "range": ("@function\ndef main(s):\n    return sum(range(10 ** 12))\n", Budget(), "items"),
    "format": ("@function\ndef main(s):\n    n = 3\n    return f'{n:>1000000000}'\n", Budget(), "columns"),
    "percent": ("@function\ndef main(s):\n    n = 3\n    return '%1000000000d' % n\n", Budget(), "columns"),
    "replace": ("@function\ndef main(s):\n    t = 'a' * 100000\n    return t.replace('a', t)\n", Budget(), "characters"),
    "regex": ("import re\n@function\ndef main(s):\n    t = 'a' * 40\n    return re.fullmatch('(a|a)*b', t)\n", Budget(), "steps"),
    "bytes": ("@function\ndef main(s):\n    for i in range(10 ** 6):\n        t = str(i) * 100000\n", Budget(bytes=5 << 20), "bytes"),
    "round": ("@function\ndef main(s):\n    n = 5\n    return round(n, -10 ** 9)\n", Budget(), "digits"),
}


@pytest.mark.parametrize("name", HOSTILE)
async def test_hostile_programs_cost_a_clear_error_and_little_time(name: str) -> None:
    source, budget, complaint = HOSTILE[name]
    began = time.process_time()
    with pytest.raises(ProgramFailed, match=complaint) as failure:
        await run(source, budget=budget, **({"depth": 0} if name == "nesting" else {}))
    assert time.process_time() - began < 3
    assert "<program" in str(failure.value), "the refusal names the user's line"
    assert "^" in str(failure.value)


async def test_wall_time_is_a_budget_even_while_nothing_happens() -> None:
    class Stuck(HashBackend):
        async def generate(self, call: GenerateCall) -> AsyncIterator[GenerateChunk]:
            await asyncio.sleep(60)
            yield GenerateChunk("")

    with pytest.raises(ProgramFailed, match=r"more than 0\.1 seconds"):
        await run("@function\ndef main(s):\n    s += sgl.gen('x')\n    return s['x']\n", Stuck(), budget=Budget(seconds=0.1))


async def test_run_time_errors_show_the_users_own_line() -> None:
    source = "@function\ndef main(s):\n    s += sgl.gen('x')\n    return s['nothing']\n"
    with pytest.raises(ProgramFailed) as failure:
        await run(source)
    assert ":4:12\n      return s['nothing']\n             ^^^^^^^^^^^^" in str(failure.value)
    assert "KeyError: 'nothing' is no variable" in str(failure.value)


async def test_cancelling_a_run_aborts_its_generations() -> None:
    backend = SlowBackend(num_turns=1_000_000_000)
    task = asyncio.ensure_future(run(FORKS, backend, width=4))
    await until(lambda: backend.live == 4)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (backend.live, backend.aborted) == (0, 4)


async def test_a_failure_ends_what_runs_beside_it() -> None:
    backend = SlowBackend()
    with pytest.raises(ProgramFailed, match="ZeroDivisionError"):
        await run("@function\ndef main(s):\n    s += sgl.gen('x')\n    return 1 // len('')\n", backend)
    assert backend.live == 0


async def test_arguments_are_checked_by_name() -> None:
    with pytest.raises(Exception, match="argument 'top' is missing"):
        await run(LOOP)
    with pytest.raises(Exception, match="no parameter 'other'; it has top"):
        await run(LOOP, top=1, other=2)


async def test_a_long_conversation_can_be_cancelled_and_finished() -> None:
    """Thousands of chained steps neither recurse nor leak."""
    source = (
        "@function\ndef main(s, length):\n    s += sgl.gen('x')\n    for i in range(length):\n        s += 'a'\n    return len(s.text())\n"
    )
    result = await run(source, SlowBackend(), length=3000)
    assert result.value >= 3000
    backend = SlowBackend(num_turns=1_000_000_000)
    task = asyncio.ensure_future(run(source, backend, length=3000))
    await until(lambda: backend.live)
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_events_tell_what_happens() -> None:
    events: list[Event] = []
    program: Function = define(FORKS)
    await run_program(compiled(program).module, {"width": 2}, HashBackend(), emit=events.append)
    kinds = [event.kind for event in events]
    assert kinds.count("done") == 2
    assert {"text", "branch", "started", "done"} <= set(kinds)


async def test_a_watch_follows_the_runs_own_conversation_in_order() -> None:
    class Watching:
        def __init__(self) -> None:
            self.text, self.variables = "", {}

        def said(self, parts: Any) -> None:
            self.text += "".join(part.value for part in parts if part.kind == "text")

        def saying(self, name: str | None, text: str) -> None:
            assert text

        def wrote(self, name: str, value: Any, meta: Any) -> None:
            self.variables[name] = value

    source = """
@function
def main(s, topic):
    s += "About " + topic + sgl.gen("a")
    forks = s.fork(2)
    forks += "aside" + sgl.gen("b")
    forks.join()
    s["note"] = len(s["b"])
    s += sgl.select("c", choices=["yes", "no"])
"""
    program, watch = compiled(define(source)), Watching()
    result = await run_program(program.module, {"topic": "x"}, HashBackend(), watch=watch)
    assert watch.text == result.state.conversation.render(PLAIN_FORMAT)
    assert watch.variables == dict(result.state.variables)
