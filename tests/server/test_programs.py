"""Programs on the server: registering, running, host calls, cancelling, budgets with the user's line, traces; and what hostile clients
get for their trouble."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterator
from itertools import combinations
from typing import Any

import httpx
import pytest

import ramet as sgl
from ramet.errors import DeadlineExceeded, QuotaExceeded
from ramet.grammar.llguidance_compiler import LlguidanceCompiler
from ramet.program.budget import BudgetExceeded
from ramet.runtime.engine.async_engine import AsyncEngine
from ramet.server.run_stream import Outlet
from ramet.wire.codec import digest
from tests.fakes import fake_engine
from tests.server.live_server import live_server
from tests.waiting import PATIENCE, turns, wait_until


@sgl.function
def greet(s: Any, name: str) -> Any:
    s += sgl.system("Be brief.") + sgl.user("Hello, I am " + name)
    s += sgl.assistant(sgl.gen("reply", regex="[a-z]{3,6}", max_tokens=8))
    if s["reply"] == "never":
        return "?"
    return s["reply"]


def lookup(name: str) -> dict[str, Any]:
    return {"name": name, "known": name in ("a", "b")}


@sgl.function
def with_tool(s: Any, name: str) -> Any:
    s += "Person: " + sgl.gen("x", max_tokens=3)
    found = lookup(name)
    return found["known"]


@sgl.function
def endless(s: Any, word: str) -> Any:
    text = word
    while True:
        text = text + "!"  # the loop
    return text


@sgl.function
def doubling(s: Any, word: str) -> Any:
    for _ in range(100):
        word = word + word
    return word


@sgl.function
def wide(s: Any, count: int) -> Any:
    forks = s.fork(count)
    forks += sgl.gen("x", max_tokens=1)
    forks.join()
    return len(s["x"])


@sgl.function
def recursive(s: Any, depth: int) -> Any:
    return recursive(s, depth + 1)


@sgl.function
def slow(s: Any) -> Any:
    s += "Go:" + sgl.gen("x", max_tokens=2000, ignore_eos=True)
    return s["x"]


@pytest.fixture(scope="module")
def engine() -> Iterator[AsyncEngine]:
    engine = fake_engine(slow=True)
    yield engine
    engine.close_now()


@pytest.fixture(scope="module")
def url(engine: AsyncEngine) -> Iterator[str]:
    with live_server(engine, max_programs=8, max_live_runs=64, run_steps=5000, run_seconds=20, run_forks=64) as url:
        yield url


@pytest.fixture
async def client(url: str) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=url, timeout=PATIENCE) as client:
        yield client


def wire(program: Any) -> tuple[str, bytes]:
    prepared = program.compilation.get()
    return prepared.digest, prepared.encoded


async def register(client: httpx.AsyncClient, program: Any) -> str:
    name, encoded = wire(program)
    reply = await client.put(f"/v1/programs/{name}", content=encoded)
    assert reply.status_code == 200, reply.text
    return name


async def run(client: httpx.AsyncClient, name: str, **body: Any) -> list[dict[str, Any]]:
    reply = await client.post(f"/v1/programs/{name}/runs", json=body)
    assert reply.status_code == 200, reply.text
    lines = [line[6:] for line in reply.text.splitlines() if line.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


async def test_register_prepares_and_is_idempotent(client: httpx.AsyncClient) -> None:
    name, encoded = wire(greet)
    began = time.perf_counter()
    first = (await client.put(f"/v1/programs/{name}", content=encoded)).json()
    elapsed = time.perf_counter() - began
    assert first["grammars"] == [{"kind": "regex", "error": None}]
    assert first["prefix_tokens"] >= len("Be brief.Hello, I am ")
    assert 0 < first["seconds"] < elapsed
    assert (await client.put(f"/v1/programs/{name}", content=b"ignored, since it is known")).json()["known"] is True
    [started, done] = await run(client, name, arguments={"name": "Ada"}, sampling={"temperature": 0})
    assert started["event"] == "started" and done["event"] == "done"
    assert done["value"] == done["variables"]["reply"] and 3 <= len(done["value"]) <= 6
    assert done["meta"]["reply"]["cached_tokens"] > len("Be brief."), "the prefix was warm before the first run"


async def test_no_grammar_is_compiled_on_the_way_of_a_run(client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[str] = []
    plain = LlguidanceCompiler.compile

    def seen(compiler: LlguidanceCompiler, kind: str, source: str) -> Any:
        compiled.append(source)
        return plain(compiler, kind, source)

    @sgl.function
    def code(s: Any) -> Any:
        s += "Code: " + sgl.gen("x", regex="[A-F]{2}[0-9]{3}", max_tokens=8)
        return s["x"]

    monkeypatch.setattr(LlguidanceCompiler, "compile", seen)
    name = await register(client, code)
    assert compiled == ["[A-F]{2}[0-9]{3}"]
    await run(client, name, arguments={}, sampling={"temperature": 0})
    assert len(compiled) == 1


async def test_streamed_events_and_trace(client: httpx.AsyncClient) -> None:
    name = await register(client, greet)
    events = await run(client, name, arguments={"name": "Ada"}, sampling={"temperature": 0}, stream=True, trace=True)
    kinds = {event["event"] for event in events}
    assert kinds == {"started", "parts", "text", "set", "branch", "done"}
    done = events[-1]
    assert "".join(event["text"] for event in events if event["event"] == "text") == done["variables"]["reply"]
    assert [part for event in events if event["event"] == "parts" for part in event["parts"]] == done["parts"]
    assert [span["kind"] for span in done["spans"]].count("gen") == 1
    trace = (await client.get(f"/v1/runs/{events[0]['id']}")).json()
    assert (trace["status"], trace["digest"]) == ("done", name)
    assert trace["spans"] == done["spans"] and trace["spent"]["generations"] == 1
    assert (await client.get("/v1/runs/nobody")).status_code == 404


async def test_a_batch_answers_as_its_runs_finish(client: httpx.AsyncClient) -> None:
    name = await register(client, greet)
    batch = [{"name": str(index)} for index in range(9)]
    events = await run(client, name, batch=batch, sampling={"temperature": 0}, concurrency=3)
    done = [event for event in events if event["event"] == "done"]
    assert sorted(event["run"] for event in done) == list(range(9))
    alone = await run(client, name, arguments=batch[4], sampling={"temperature": 0})
    assert next(event for event in done if event["run"] == 4)["value"] == alone[-1]["value"]
    alive = peak = 0
    for event in events:
        alive += {"started": 1, "done": -1}.get(event["event"], 0)
        peak = max(peak, alive)
    assert peak == 3


async def test_a_host_call_waits_for_its_client(client: httpx.AsyncClient) -> None:
    name = await register(client, with_tool)
    values: list[Any] = []
    async with client.stream("POST", f"/v1/programs/{name}/runs", json={"arguments": {"name": "a"}}) as reply:
        async for line in reply.aiter_lines():
            if not line.startswith("data: {"):
                continue
            event = json.loads(line[6:])
            if event["event"] == "call":
                assert (event["function"], event["args"], event["number"]) == ("lookup", ["a"], 0)
                wrong = await client.post(f"/v1/runs/{event['id']}/calls/0", json={"nothing": 1})
                late = await client.post(f"/v1/runs/{event['id']}/calls/7", json={"value": 1})
                assert (wrong.status_code, late.status_code) == (400, 404)
                assert (await client.post(f"/v1/runs/{event['id']}/calls/0", json={"value": {"known": "yes"}})).status_code == 200
            values.append(event)
    assert values[-1]["value"] == "yes"


async def test_cancelling_and_leaving_end_the_generation(client: httpx.AsyncClient, engine: AsyncEngine) -> None:
    name = await register(client, slow)
    before = (await engine.stats()).generation_tokens_total
    async with client.stream("POST", f"/v1/programs/{name}/runs", json={"arguments": {}}) as reply:
        lines = reply.aiter_lines()
        started = json.loads((await anext(lines))[6:])
        assert (await client.delete(f"/v1/runs/{started['id']}")).json()["status"] == "cancelled"
        rest = [json.loads(line[6:]) async for line in lines if line.startswith("data: {")]
        assert rest[-1]["failure"]["code"] == "cancelled"
    async with client.stream("POST", f"/v1/programs/{name}/runs", json={"batch": [{}, {}, {}]}) as reply:
        await anext(reply.aiter_lines())
    await asyncio.to_thread(wait_until, lambda: asyncio.run(engine.stats()).num_running == 0)
    assert (await engine.stats()).generation_tokens_total - before < 2000, "of 8000: a run whose client has gone goes on"


async def test_cancelling_one_run_of_a_batch_leaves_the_others(client: httpx.AsyncClient) -> None:
    name = await register(client, with_tool)
    async with client.stream("POST", f"/v1/programs/{name}/runs", json={"batch": [{"name": "a"}, {"name": "b"}]}) as reply:
        ended: dict[int, dict[str, Any]] = {}
        async for line in reply.aiter_lines():
            event = json.loads(line[6:]) if line.startswith("data: {") else {"event": ""}
            if event["event"] == "call" and event["run"] == 0:
                assert (await client.delete(f"/v1/runs/{event['id']}")).json()["status"] == "cancelled"
                assert (await client.delete(f"/v1/runs/{event['id']}")).json()["status"] == "cancelled", "a second time"
            elif event["event"] == "call":
                await client.post(f"/v1/runs/{event['id']}/calls/0", json={"value": {"known": True}})
            elif event["event"] in ("done", "failed"):
                ended[event["run"]] = event
    assert ended[0]["failure"]["code"] == "cancelled" and ended[1]["value"] is True


class Slow:
    """A client's connection: `sent` are the pieces that it has taken, one at a time."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.takes = asyncio.Event()

    async def send(self, message: Any) -> None:
        if message["type"] == "http.response.body":
            await self.takes.wait()
            self.sent.append(message["body"])


async def test_events_go_together_where_the_client_lags_and_wait_for_nobody_else() -> None:
    client = Slow()
    outlet = Outlet(client.send, patient=False)
    outlet.emit({"event": "started"})
    for number in range(5):
        await turns()
        outlet.emit({"event": "text", "number": number})
    assert outlet.num_pending == 5, "the first is being sent, the others gather"
    client.takes.set()
    await outlet.end()
    assert [piece.count(b"data: {") for piece in client.sent] == [1, 5, 0]
    assert client.sent[-1] == b"data: [DONE]\n\n"


async def test_a_patient_stream_tells_of_the_start_with_what_comes_next(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ramet.server.run_stream.LINGER_SECONDS", 1000.0)
    client = Slow()
    client.takes.set()
    outlet = Outlet(client.send, patient=True)
    outlet.emit({"event": "started"})
    await turns()
    assert not client.sent
    outlet.emit({"event": "call"})
    await turns()
    assert [piece.count(b"data: {") for piece in client.sent] == [2]
    outlet.emit({"event": "done"})
    await outlet.end()
    assert [piece.count(b"data: ") for piece in client.sent] == [2, 2], "the last event and the end in one piece"


@pytest.mark.parametrize(
    ("program", "arguments", "error", "line"),
    [
        (endless, {"word": "a"}, BudgetExceeded, 'text = text + "!"'),
        (doubling, {"word": "a"}, QuotaExceeded, "word = word + word"),
        (wide, {"count": 500}, BudgetExceeded, "forks = s.fork(count)"),
        (recursive, {"depth": 0}, QuotaExceeded, "return recursive(s, depth + 1)"),
    ],
)
def test_budgets_name_the_line(url: str, program: Any, arguments: dict[str, Any], error: type[Exception], line: str) -> None:
    began = time.process_time()
    with pytest.raises(error) as caught:
        program.run(**arguments, backend=sgl.RuntimeEndpoint(url), mode="compiled")
    assert line in caught.value.__notes__[0] and "^" in caught.value.__notes__[0]
    assert time.process_time() - began < 10


def test_deadlines_are_kept_by_the_server(url: str, engine: AsyncEngine) -> None:
    before = asyncio.run(engine.stats()).generation_tokens_total
    with pytest.raises(DeadlineExceeded):
        slow.run(backend=sgl.RuntimeEndpoint(url), mode="compiled", timeout=0.2)
    wait_until(lambda: asyncio.run(engine.stats()).num_running == 0)
    assert asyncio.run(engine.stats()).generation_tokens_total - before < 1000, "of 2000"


HOSTILE: dict[str, Any] = {
    "nothing": b"",
    "no JSON": b"\xff\xfe",
    "deep": b"[" * 100_000,
    "another version": b'{"format":"ramet-program","version":99}',
    "an unknown op": b'{"format":"ramet-program","version":1,"functions":[{"name":"f","params":[],"types":{"0":"state"},'
    b'"blocks":[{"id":0,"args":[0],"ops":[["exec",{},[0,0,0,0]]]}]}]}',
    "a jump to itself as entry": b'{"format":"ramet-program","version":1,"functions":[{"name":"f","params":[],"types":{"0":"state"},'
    b'"blocks":[{"id":0,"args":[0],"ops":[["br",{"to":[0,[0]]},[0,0,0,0]]]}]}]}',
    "a huge number": b'{"format":"ramet-program","version":1,"functions":[' + b"9" * 5000 + b"]}",
    "wrong types": b'{"format":"ramet-program","version":1,"functions":"main"}',
}


@pytest.mark.parametrize("what", HOSTILE)
async def test_a_hostile_program_costs_a_clear_error(client: httpx.AsyncClient, what: str) -> None:
    began = time.process_time()
    reply = await client.put(f"/v1/programs/{digest(HOSTILE[what])}", content=HOSTILE[what])
    assert reply.status_code == 400, reply.text
    assert reply.json()["error"]["message"] and time.process_time() - began < 2


async def test_a_digest_that_lies_is_refused(client: httpx.AsyncClient) -> None:
    _, encoded = wire(endless)
    assert (await client.put(f"/v1/programs/{'0' * 64}", content=encoded)).status_code == 400
    assert (await client.post(f"/v1/programs/{'0' * 64}/runs", json={"arguments": {}})).json()["error"]["code"] == "program_not_found"


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        (b"[" * 50_000, "not JSON"),
        (b"[]", "must be a JSON object"),
        (b"{}", "exactly one of arguments and batch"),
        (b'{"arguments":{},"batch":[]}', "exactly one"),
        (b'{"arguments":{},"surprise":1}', "surprise"),
        (b'{"arguments":{"name":{"~exec":1}}}', "no tag of a value"),
        (b'{"arguments":{"name":"x"},"timeout_s":-1}', "timeout_s"),
    ],
)
async def test_hostile_runs_cost_a_clear_error(client: httpx.AsyncClient, body: bytes, complaint: str) -> None:
    name = await register(client, greet)
    reply = await client.post(f"/v1/programs/{name}/runs", content=body)
    assert reply.status_code == 400 and complaint in reply.json()["error"]["message"]


async def test_wrong_arguments_and_sampling_fail_the_run(client: httpx.AsyncClient) -> None:
    name = await register(client, greet)
    for body in ({"arguments": {}}, {"arguments": {"name": "x", "more": 1}}, {"arguments": {"name": 5}}):
        assert (await run(client, name, **body))[-1]["failure"]["status"] == 400
    wrong = (await run(client, name, arguments={"name": "x"}, sampling={"top_p": 7}))[-1]
    assert "top_p" in wrong["failure"]["message"] and wrong["location"][1] > 0


async def test_the_registry_forgets_the_least_recently_used(client: httpx.AsyncClient, url: str) -> None:
    name = await register(client, greet)
    others = [other for other in (greet.without_passes(*passes) for passes in _subsets()) if wire(other)[0] != name]
    names = {await register(client, other) for other in others}
    assert len(names) > 8
    assert (await client.post(f"/v1/programs/{name}/runs", json={"arguments": {"name": "x"}})).status_code == 404
    endpoint = sgl.RuntimeEndpoint(url)
    assert (await greet.arun(name="x", backend=endpoint, mode="compiled"))["reply"]
    await asyncio.gather(*(register(client, other) for other in others))
    assert (await greet.arun(name="x", backend=endpoint, mode="compiled"))["reply"], "a forgotten program is registered again"


def _subsets() -> list[tuple[str, ...]]:
    """Ways to compile that give different modules."""
    names = ("merge_text", "batch_hints", "precompile_constraints", "hoist_prefix", "parallelize", "dead_code", "constant_fold")
    return [tuple(chosen) for size in (1, 2) for chosen in combinations(names, size)]


async def test_more_live_runs_than_there_is_room_for_are_refused(engine: AsyncEngine) -> None:
    with live_server(engine, max_live_runs=2) as url:
        async with httpx.AsyncClient(base_url=url, timeout=PATIENCE) as client:
            name = await register(client, slow)
            async with client.stream("POST", f"/v1/programs/{name}/runs", json={"batch": [{}, {}]}) as reply:
                lines = reply.aiter_lines()
                for _ in range(3):
                    await anext(lines)
                refused = await client.post(f"/v1/programs/{name}/runs", json={"arguments": {}})
                assert refused.status_code == 503 and "Retry-After" in refused.headers
                metrics = (await client.get("/metrics")).text
                assert "ramet:program_live_runs 2.0" in metrics and "ramet:programs_registered 1.0" in metrics


def test_a_server_without_programs_is_interpreted_for(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ramet.wire.codec.VERSION", 99)
    endpoint = sgl.RuntimeEndpoint(url)
    fresh = sgl.function(greet.function)
    prepared = fresh.compilation.get()
    assert b'"version":99' in prepared.encoded
    monkeypatch.undo()
    assert fresh.run("x", backend=endpoint, mode="compiled")["reply"]
    assert "not 'ramet-program' version 99" in str(endpoint.programs.unavailable)


def test_objects_of_the_host_pass_through(url: str) -> None:
    state = holds.run(backend=sgl.RuntimeEndpoint(url), mode="compiled")
    assert state.value == ({"a", "b"}, 2)
    assert looks.run(backend=sgl.RuntimeEndpoint(url), mode="compiled").value == ["a", "b"]


def letters() -> set[str]:
    return {"a", "b"}


def count(values: set[str]) -> int:
    return len(values)


@sgl.function
def holds(s: Any) -> Any:
    found = letters()
    return found, count(found)


@sgl.function
def looks(s: Any) -> Any:
    return sorted(letters())


def test_constants_that_json_lacks(url: str) -> None:
    state = extremes.run([3.5, -1.0], backend=sgl.RuntimeEndpoint(url), mode="compiled")
    assert state.value == (3.5, float("-inf"), ("a", ("b", 1)))
    assert extremes.run([3.5, -1.0], backend=sgl.ScriptedBackend(), mode="interpreted").value == state.value


PAIRS = ("a", ("b", 1))


@sgl.function
def extremes(s: Any, numbers: list[float]) -> Any:
    best = lowest = float("-inf")
    for number in numbers:
        if number > best:
            best = number
    return best, lowest, PAIRS
