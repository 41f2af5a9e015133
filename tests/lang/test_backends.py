"""The same programs over HTTP, on an engine in process, and on an OpenAI-type endpoint: the real engine over a fake executor."""

from __future__ import annotations

import asyncio
import gc
import json
import re
import threading
import traceback
from collections.abc import Iterator
from typing import Any

import pytest

import ramet as sgl
from ramet.errors import ConfigError, DeadlineExceeded, GrammarError, InternalError, InvalidRequest, QueueFull, Unsupported
from ramet.lang.backends.http_client import error_for, error_of
from ramet.lang.engine_door import EngineBackend
from ramet.lang.process import _process, as_backend
from ramet.program.backend import ChatFormat
from ramet.runtime.engine.async_engine import AsyncEngine
from tests.fakes import fake_engine, scripted_engine
from tests.server.live_server import live_server
from tests.waiting import PATIENCE, wait_until


@pytest.fixture(scope="module")
def engine() -> Iterator[AsyncEngine]:
    engine = fake_engine()
    yield engine
    engine.close_now()


@pytest.fixture(scope="module")
def url(engine: AsyncEngine) -> Iterator[str]:
    with live_server(engine) as url:
        yield url


@sgl.function
def program(s: Any) -> Any:
    s += sgl.system("Be brief.") + sgl.user("Pick and count.")
    s += sgl.assistant(sgl.select("pick", ["yes", "no", "nothing"]) + " " + sgl.gen("n", regex="[0-9]{3}") + sgl.gen("x", max_tokens=6))
    forks = s.fork(3)
    forks += lambda i: sgl.user(f"And {i}?") + sgl.assistant(sgl.gen("y", max_tokens=4, return_logprob=True))
    forks.join()
    return s["pick"], s["n"], s["x"], s["y"]


def test_server_and_engine_give_the_same(engine: AsyncEngine, url: str) -> None:
    over_http = program.run(backend=sgl.RuntimeEndpoint(url), temperature=0)
    in_process = program.run(backend=engine, temperature=0)
    assert over_http.value == in_process.value
    assert over_http.text() == in_process.text()
    assert over_http.text().startswith("<begin>system\nBe brief.<end>\n<begin>user\n")
    assert re.fullmatch("[0-9]{3}", over_http["n"])
    probabilities = [state.get_meta_info("pick")["probabilities"] for state in (over_http, in_process)]
    assert probabilities[0] == pytest.approx(probabilities[1])
    assert in_process.get_meta_info("x")["cached_tokens"] > 0


def test_unconditional_scores_and_logprobs_on_both(engine: AsyncEngine, url: str) -> None:
    @sgl.function
    def judge(s: Any) -> None:
        s += "It is " + sgl.select("x", ["warm", "cold"], choices_method=sgl.unconditional_likelihood_normalized)
        s += sgl.gen("y", max_tokens=5, return_logprob=True, top_logprobs_num=2, return_text_in_logprobs=True)

    states = [judge.run(backend=backend, temperature=0) for backend in (sgl.RuntimeEndpoint(url), engine)]
    metas = [state.get_meta_info("y") for state in states]
    assert states[0].get_meta_info("x")["scores"] == pytest.approx(states[1].get_meta_info("x")["scores"])
    assert len(metas[0]["output_token_logprobs"]) == metas[0]["completion_tokens"] > 0
    for name in ("output_token_logprobs", "output_top_logprobs", "completion_tokens", "finish_reason"):
        assert metas[0][name] == metas[1][name]


def test_the_servers_refusals_arrive_as_what_they_are(engine: AsyncEngine, url: str) -> None:
    for backend in (sgl.RuntimeEndpoint(url), EngineBackend(engine)):
        with pytest.raises(InvalidRequest, match="top_p") as caught:
            sgl.function(lambda s: s.__iadd__("a" + sgl.gen("x", top_p=7))).run(backend=backend)
        assert str(caught.value.param).endswith("top_p") and "top_p=7" in caught.value.__notes__[0]
        with pytest.raises(GrammarError):
            sgl.function(lambda s: s.__iadd__("a" + sgl.gen("x", ebnf="root ::= (("))).run(backend=backend)


def test_other_calls_of_a_runtime(engine: AsyncEngine, url: str) -> None:
    with sgl.Runtime(endpoint=url) as runtime:
        assert runtime.get_server_info() and sgl.get_server_info(engine)["total_tokens"] > 0
        wait_until(lambda: asyncio.run(engine.stats()).num_running == 0)
        runtime.flush_cache()
        sgl.flush_cache(runtime)
    program.cache(runtime)
    assert isinstance(as_backend(runtime), sgl.RuntimeEndpoint)


def test_a_runtime_generates_without_a_program(url: str) -> None:
    with sgl.Runtime(endpoint=url) as runtime:
        runtime.cache_prefix("Once upon")
        one = json.loads(runtime.generate("Once upon a", {"max_new_tokens": 6, "temperature": 0}, return_logprob=True))
        two = json.loads(runtime.generate(["Once upon a", "b"], {"max_new_tokens": 6, "temperature": 0}))
        assert two[0]["text"] == one["text"] and len(two) == 2
        assert one["meta_info"]["cached_tokens"] > 0 and one["meta_info"]["output_token_logprobs"]

        async def streamed() -> str:
            pieces = runtime.async_generate("Once upon a", {"max_new_tokens": 6, "temperature": 0})
            return "".join([piece async for piece in pieces])

        assert asyncio.run(streamed()) == one["text"]
        with pytest.raises(InvalidRequest, match="top_p"):
            runtime.generate("a", {"top_p": 7})
        with pytest.raises(Unsupported, match="LoRA"):
            runtime.generate("a", lora_path="adapter")


@pytest.mark.parametrize("over_http", [True, False])
def test_deadlines_reach_the_engine(over_http: bool) -> None:
    engine = scripted_engine(tick=0.05)  # 200 s to its end
    try:
        with live_server(engine) as url:
            endless = sgl.function(lambda s: s.__iadd__("abc" + sgl.gen("x", max_tokens=4000)))
            with pytest.raises(DeadlineExceeded):
                endless.run(backend=sgl.RuntimeEndpoint(url) if over_http else engine, timeout=0.3)
            wait_until(lambda: asyncio.run(engine.stats()).num_running == 0)
    finally:
        engine.close_now()


def test_unreachable_and_wrong_launches() -> None:
    with pytest.raises(InternalError, match=r"ramet serve") as caught:
        program.run(backend=sgl.RuntimeEndpoint("http://127.0.0.1:9"))
    shown = "".join(traceback.format_exception(caught.value))
    assert shown.count("Traceback") == 1 and "httpx" not in shown, "one error, without the transport's own"
    with pytest.raises(ConfigError, match="write http://HOST:PORT"):
        sgl.RuntimeEndpoint("127.0.0.1:30000")
    with pytest.raises(ConfigError, match="leave out /v1"):
        sgl.RuntimeEndpoint("http://127.0.0.1:30000/v1/")
    with pytest.raises(ConfigError, match="tp_size would launch one"):
        sgl.Runtime(endpoint="http://127.0.0.1:9", tp_size=2)
    with pytest.raises(ConfigError, match=r"write Runtime\(endpoint='http://localhost:30000'\)"):
        sgl.Runtime("http://localhost:30000")
    with pytest.raises(ConfigError, match=r"write Runtime\(model_path='meta-llama/Llama-3.2-1B'\)"):
        sgl.Runtime("meta-llama/Llama-3.2-1B")
    with pytest.raises(InternalError, match="exited with code"):
        sgl.Runtime(no_such_flag=1, log_level="critical")


@pytest.mark.parametrize("count", [0, "many"])
def test_an_impossible_number_of_live_runs_is_refused(count: Any) -> None:
    with pytest.raises(InvalidRequest, match=f"num_threads must be 1 or more, or 'auto', got {count!r}"):
        program.run_batch([{}], num_threads=count, backend=sgl.ScriptedBackend())


def test_openai_endpoint(url: str) -> None:
    backend = sgl.OpenAI("fake", base_url=f"{url}/v1", extensions=["regex"])

    @sgl.function
    def chat(s: Any) -> Any:
        s += sgl.system("Be brief.") + sgl.user("Count.")
        s += sgl.assistant(sgl.gen("n", regex="[0-9]{3}", max_tokens=8, return_logprob=True))
        return s["n"]

    state = chat.run(backend=backend, temperature=0)
    assert re.fullmatch("[0-9]{3}", state.value)
    meta = state.get_meta_info("n")
    assert meta["finish_reason"]["type"] == "stop" and meta["completion_tokens"] >= 3 and len(meta["output_token_logprobs"]) >= 3
    assert state.text().startswith("SYSTEM:Be brief.\n")


@pytest.mark.parametrize(
    ("expr", "complaint"),
    [
        (lambda: sgl.user("x") + sgl.assistant(sgl.gen("y", min_tokens=3)), "min_new_tokens: not part of the OpenAI API"),
        (lambda: sgl.user("x") + sgl.assistant("So " + sgl.gen("y")), "cannot continue a message"),
        (lambda: "x" + sgl.gen("y"), "text outside of turns"),
        (lambda: sgl.user("x" + sgl.gen("y")), "outside of an assistant turn"),
        (lambda: sgl.user("x") + sgl.assistant(sgl.select("y", ["a", "b"])), "cannot score texts"),
    ],
)
def test_what_a_chat_endpoint_cannot_do_is_refused_by_name(expr: Any, complaint: str) -> None:
    backend = sgl.OpenAI("fake", base_url="http://127.0.0.1:9/v1")
    with pytest.raises(Unsupported, match=complaint):
        sgl.function(lambda s: s.__iadd__(expr())).run(backend=backend)


def test_openai_completions_and_azure(url: str) -> None:
    backend = sgl.OpenAI("fake", is_chat_model=False, base_url=f"{url}/v1", chat_template=ChatFormat({"user": ("U:", "\n")}))
    state = sgl.function(lambda s: s.__iadd__(sgl.user("hi") + sgl.gen("x", max_tokens=4))).run(backend=backend, temperature=0)
    assert state.get_meta_info("x")["completion_tokens"] == 4
    with pytest.raises(ConfigError, match="base_url"):
        sgl.OpenAI("x", is_azure=True)


def test_errors_by_code_then_status() -> None:
    assert isinstance(error_of(503, b'{"error": {"message": "busy", "code": "queue_full"}}'), QueueFull)
    assert error_of(502, b"<html>bad gateway</html>").message == "<html>bad gateway</html>"
    assert (error_for(None, 418, "tea").status, error_for("x", 500, "oops").status) == (418, 500)


def test_text_with_other_line_separators_survives_the_stream() -> None:
    said = "a\u2028b\x85c\rd"
    engine = scripted_engine()
    try:
        with live_server(engine) as url:
            state = sgl.function(lambda s: s.__iadd__(said + sgl.gen("x", max_tokens=len(said.encode())))).run(
                backend=sgl.RuntimeEndpoint(url)
            )
    finally:
        engine.close_now()
    assert state["x"] == said


def test_the_engine_class_is_a_backend() -> None:
    engine = sgl.Engine(start=lambda config: fake_engine())
    try:
        state = program.run(backend=engine, temperature=0)
        assert len(state["y"]) == 3
        assert isinstance(as_backend(engine), EngineBackend)
    finally:
        engine.shutdown()


def test_an_engine_that_only_its_backend_holds_lives_on() -> None:
    """As scripts have it: `sgl.set_default_backend(sgl.Engine())`."""
    before, _process.default_backend = _process.default_backend, None
    threads = set(threading.enumerate())  # one of an engine that nobody holds may not have ended yet
    try:
        sgl.set_default_backend(sgl.Engine(start=lambda config: fake_engine()))
        gc.collect()
        assert len(program.run(temperature=0)["y"]) == 3
        [thread] = [thread for thread in set(threading.enumerate()) - threads if thread.name == "ramet-engine"]
    finally:
        _process.default_backend = before
    gc.collect()
    thread.join(PATIENCE)
    assert not thread.is_alive()
    assert len(program.run(backend=sgl.Engine(start=lambda config: fake_engine()), temperature=0)["y"]) == 3
