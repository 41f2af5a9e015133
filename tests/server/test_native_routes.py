"""/generate and its neighbours, over real HTTP with a scripted engine behind."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from ramet.errors import ContextTooLong, GrammarError, QueueFull
from ramet.runtime.request import Finish, FinishKind
from ramet.server.native_schema import GenerateReply
from tests.server.live_server import live_server
from tests.server.scripted_engine import BOS, EOS, ScriptedEngine
from tests.waiting import PATIENCE, until, wait_until


@pytest.fixture
def engine() -> ScriptedEngine:
    return ScriptedEngine()


@pytest.fixture
def client(engine: ScriptedEngine) -> Iterator[httpx.Client]:
    with live_server(engine) as url, httpx.Client(base_url=url, timeout=PATIENCE) as client:
        yield client


def events_of(response: httpx.Response) -> list[dict[str, Any]]:
    assert response.headers["content-type"].startswith("text/event-stream")
    frames = [frame for frame in response.text.split("\n\n") if frame]
    assert all(frame.startswith("data: ") for frame in frames)
    assert frames[-1] == "data: [DONE]"
    return [json.loads(frame.removeprefix("data: ")) for frame in frames[:-1]]


def error_of(response: httpx.Response) -> dict[str, Any]:
    body = response.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    return dict(body["error"])


class TestGenerate:
    @pytest.mark.parametrize("method", ["POST", "PUT"])
    def test_one_text(self, client: httpx.Client, method: str) -> None:
        reply = client.request(method, "/generate", json={"text": "Hi", "rid": "r1"}).json()
        GenerateReply.model_validate(reply, strict=True)
        assert reply["text"] == "Hello"
        assert reply["output_ids"] == list(b"Hello")
        meta = reply["meta_info"]
        assert meta["id"] == "r1"
        assert meta["finish_reason"] == {"type": "stop", "matched": EOS}
        assert (meta["prompt_tokens"], meta["completion_tokens"]) == (3, 5)

    def test_length_finish(self, client: httpx.Client) -> None:
        reply = client.post("/generate", json={"text": "Hi", "sampling_params": {"max_new_tokens": 2}}).json()
        assert reply["text"] == "He"
        assert reply["meta_info"]["finish_reason"] == {"type": "length", "length": 2}

    def test_batch_of_texts_keeps_order(self, client: httpx.Client, engine: ScriptedEngine) -> None:
        engine.answers = {"a": "first", "b": "2nd"}
        replies = client.post("/generate", json={"text": ["a", "b"], "rid": ["x", "y"]}).json()
        assert [r["text"] for r in replies] == ["first", "2nd"]
        assert [r["meta_info"]["id"] for r in replies] == ["x", "y"]

    def test_batch_of_ids_with_own_sampling(self, client: httpx.Client, engine: ScriptedEngine) -> None:
        body = {"input_ids": [[1, 2], [3]], "sampling_params": [{"temperature": 0.0}, {"max_new_tokens": 1}], "cache_salt": ["s", "t"]}
        assert [r["text"] for r in client.post("/generate", json=body).json()] == ["Hello", "H"]
        assert [g.input_ids for g in engine.seen] == [(1, 2), (3,)]
        assert [g.cache_namespace for g in engine.seen] == ["s", "t"]
        assert engine.seen[0].sampling.greedy and not engine.seen[1].sampling.greedy

    def test_n_choices_have_seeds_of_their_own(self, client: httpx.Client, engine: ScriptedEngine) -> None:
        replies = client.post("/generate", json={"text": "Hi", "rid": "r", "sampling_params": {"n": 3, "sampling_seed": 7}}).json()
        assert [r["meta_info"]["id"] for r in replies] == ["r-0", "r-1", "r-2"]
        assert [g.sampling.seed for g in engine.seen] == [7, 8, 9]
        assert {g.sampling.n for g in engine.seen} == {1}

    def test_stream_is_cumulative(self, client: httpx.Client) -> None:
        events = events_of(client.post("/generate", json={"text": "Hi", "stream": True}))
        texts = [event["text"] for event in events]
        assert texts == ["H", "He", "Hel", "Hell", "Hello", "Hello"]
        assert [e["meta_info"]["finish_reason"] for e in events[:-1]] == [None] * 5
        assert events[-1]["output_ids"] == list(b"Hello")
        assert "index" not in events[0]

    def test_incremental_stream(self, client: httpx.Client) -> None:
        events = events_of(client.post("/generate", json={"text": "Hi", "stream": True, "incremental": True}))
        assert [event["text"] for event in events] == ["H", "e", "l", "l", "o", ""]
        assert [i for event in events for i in event["output_ids"]] == list(b"Hello")

    def test_stream_of_a_batch_has_indexes(self, client: httpx.Client, engine: ScriptedEngine) -> None:
        engine.answers = {"a": "first", "b": "2nd"}
        last = {e["index"]: e for e in events_of(client.post("/generate", json={"text": ["a", "b"], "stream": True}))}
        assert {index: e["text"] for index, e in last.items()} == {0: "first", 1: "2nd"}
        assert all(e["meta_info"]["finish_reason"] for e in last.values())

    def test_logprobs(self, client: httpx.Client) -> None:
        body = {
            "text": "Hi",
            "return_logprob": True,
            "logprob_start_len": 0,
            "top_logprobs_num": 2,
            "token_ids_logprob": [9],
            "return_text_in_logprobs": True,
        }
        meta = client.post("/generate", json=body).json()["meta_info"]
        assert meta["input_token_logprobs"] == [[None, BOS, "<bos>"], [-0.25, ord("H"), "H"], [-0.25, ord("i"), "i"]]
        assert [entry[2] for entry in meta["output_token_logprobs"]] == list("Hello")
        assert meta["output_top_logprobs"][0] == [[-0.5, 65, "A"], [-1.0, 66, "B"]]
        assert meta["input_top_logprobs"][0] is None
        assert meta["output_token_ids_logprobs"][0] == [[-3.0, 9, "\t"]]

    def test_logprobs_without_text(self, client: httpx.Client) -> None:
        meta = client.post("/generate", json={"text": "Hi", "return_logprob": True}).json()["meta_info"]
        assert meta["input_token_logprobs"] == []
        assert meta["output_token_logprobs"][0] == [-0.25, ord("H"), None]

    @pytest.mark.parametrize(
        ("body", "param"),
        [
            ({}, "text"),
            ({"text": "a", "input_ids": [1]}, "text"),
            ({"text": []}, "text"),
            ({"input_ids": [999]}, "input_ids"),
            ({"text": "a", "temprature": 1}, "temprature"),
            ({"text": "a", "sampling_params": {"temprature": 1}}, "sampling_params.temprature"),
            ({"text": "a", "sampling_params": {"top_p": 3}}, "sampling_params.top_p"),
            ({"text": ["a"], "sampling_params": [{}, {}]}, "sampling_params"),
            ({"text": ["a", "b"], "rid": ["x"]}, "rid"),
            ({"text": ["a", "b"], "rid": ["x", "x"]}, "rid"),
            ({"text": 3}, "text"),
            ({"text": "a", "image_data": "x.png"}, "image_data"),
            ({"text": "a", "lora_path": "x"}, "lora_path"),
            ({"text": "a", "return_hidden_states": True}, "return_hidden_states"),
            ({"text": "a", "session_params": {"id": "x"}}, "session_params"),
            ({"text": "a", "custom_logit_processor": "x"}, "custom_logit_processor"),
        ],
    )
    def test_bad_requests_name_the_field(self, client: httpx.Client, body: dict[str, Any], param: str) -> None:
        response = client.post("/generate", json=body)
        assert response.status_code == 400
        assert error_of(response)["param"] == param

    def test_what_clients_of_sglang_send_without_meaning_it(self, client: httpx.Client) -> None:
        unused = dict.fromkeys(("lora_path", "image_data", "video_data", "audio_data", "session_params", "custom_logit_processor"))
        response = client.post("/generate", json={"text": "a", "return_hidden_states": False, "log_metrics": True, **unused})
        assert response.status_code == 200, response.text

    def test_malformed_json(self, client: httpx.Client) -> None:
        response = client.post("/generate", content=b'{"text": ', headers={"content-type": "application/json"})
        assert response.status_code == 400
        assert "JSON" in error_of(response)["message"]

    def test_json_under_another_name(self, client: httpx.Client) -> None:
        """As `curl -d` sends it where no header is given."""
        headers = {"content-type": "application/x-www-form-urlencoded"}
        response = client.post("/generate", content=b'{"text": "Hi"}', headers=headers)
        assert response.status_code == 400
        assert "send it with the header 'Content-Type: application/json'" in error_of(response)["message"]

    @pytest.mark.parametrize("stream", [False, True])
    @pytest.mark.parametrize(
        ("refusal", "status", "code"),
        [
            (GrammarError("bad", where="char 3"), 400, "invalid_grammar"),
            (ContextTooLong("too long"), 400, "context_length_exceeded"),
            (QueueFull("full", retry_after=2.5), 503, "queue_full"),
        ],
    )
    def test_refusals_of_the_engine(
        self, client: httpx.Client, engine: ScriptedEngine, refusal: Any, status: int, code: str, stream: bool
    ) -> None:
        engine.refusal = refusal
        response = client.post("/generate", json={"text": "Hi", "stream": stream})
        assert (response.status_code, error_of(response)["code"]) == (status, code)
        assert response.headers.get("retry-after") == ("3" if status == 503 else None)

    @pytest.mark.parametrize("stream", [False, True])
    def test_a_refused_grammar_is_a_field_of_the_request(self, client: httpx.Client, engine: ScriptedEngine, stream: bool) -> None:
        engine.refusal = GrammarError("bad", where="char 3")
        response = client.post("/generate", json={"text": "Hi", "stream": stream, "sampling_params": {"regex": "(a"}})
        assert error_of(response)["param"] == "sampling_params.regex"

    def test_error_finish_before_and_after_the_first_token(self, client: httpx.Client, engine: ScriptedEngine) -> None:
        engine.ending = Finish(FinishKind.ERROR, message="the worker died", status=503, code="worker_died")
        whole = client.post("/generate", json={"text": "Hi"})
        assert (whole.status_code, error_of(whole)["code"]) == (503, "worker_died")
        events = events_of(client.post("/generate", json={"text": "Hi", "stream": True}))
        assert events[-1]["error"]["code"] == "worker_died"
        assert events[-2]["text"] == "Hello"

    def test_abort_by_exact_rid(self, client: httpx.Client, engine: ScriptedEngine) -> None:
        engine.answer, engine.step_seconds = "x" * 200, 0.05
        with client.stream("POST", "/generate", json={"text": "Hi", "rid": "job10", "stream": True}) as response:
            lines = response.iter_lines()
            next(lines)
            assert client.post("/abort_request", json={"rid": "job1"}).json() == {"aborted": 0}
            assert client.post("/abort_request", json={"rid": "job10"}).json() == {"aborted": 1}
            data = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
        assert data[-1]["meta_info"]["finish_reason"]["type"] == "abort"
        assert len(data[-1]["text"]) < 200

    def test_abort_reaches_all_parts_of_a_group(self, client: httpx.Client, engine: ScriptedEngine) -> None:
        engine.answer, engine.step_seconds = "x" * 200, 0.05
        body = {"text": "Hi", "rid": "g", "stream": True, "sampling_params": {"n": 2}}
        with client.stream("POST", "/generate", json=body) as response:
            lines = response.iter_lines()
            next(lines)
            wait_until(lambda: len(engine.seen) == 2)
            client.post("/abort_request", json={"rid": "g"})
            list(lines)
        assert sorted(engine.aborted) == ["g-0", "g-1"]


class TestDisconnect:
    @pytest.mark.parametrize("path", ["/generate", "/v1/completions", "/v1/chat/completions"])
    @pytest.mark.parametrize("stream", [False, True])
    def test_a_client_that_leaves_aborts_at_once(self, client: httpx.Client, engine: ScriptedEngine, path: str, stream: bool) -> None:
        engine.answer, engine.step_seconds = "x" * 400, 0.2  # 80 s to its end
        bodies: dict[str, dict[str, Any]] = {
            "/generate": {"text": "Hi", "sampling_params": {"max_new_tokens": 400}},
            "/v1/completions": {"prompt": "Hi", "max_tokens": 400},
            "/v1/chat/completions": {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 400},
        }
        asyncio.run(self._come_and_leave(str(client.base_url), path, bodies[path] | {"stream": stream}, engine))
        wait_until(lambda: [seen.request_id for seen in engine.seen] == engine.aborted != [])
        assert engine.finished == []
        wait_until(lambda: 'status="499"} 1.0' in client.get("/metrics").text)

    async def _come_and_leave(self, url: str, path: str, body: dict[str, Any], engine: ScriptedEngine) -> None:
        """After the first line of a stream, or while the whole reply is waited for."""
        async with httpx.AsyncClient(base_url=url, timeout=PATIENCE) as client:
            if body["stream"]:
                async with client.stream("POST", path, json=body) as response:
                    await anext(response.aiter_lines())
                return
            waiting = asyncio.create_task(client.post(path, json=body))
            await until(lambda: engine.seen)
            waiting.cancel()
            await asyncio.wait([waiting])


class TestNeighbours:
    def test_tokenize_and_back(self, client: httpx.Client) -> None:
        reply = client.post("/tokenize", json={"prompt": "añ"}).json()
        assert reply == {"tokens": [BOS, *"añ".encode()], "count": 4, "max_model_len": 512}
        assert client.post("/detokenize", json={"tokens": reply["tokens"]}).json() == {"text": "añ"}
        assert client.post("/detokenize", json={"tokens": [[65], [66]], "skip_special_tokens": False}).json() == {"text": ["A", "B"]}

    @pytest.mark.parametrize("route", ["/encode", "/v1/embeddings", "/v1/rerank", "/v1/score"])
    def test_embeddings_are_refused_by_name(self, client: httpx.Client, route: str) -> None:
        response = client.post(route, json={"text": "Hi"})
        assert response.status_code == 400
        assert error_of(response)["message"].startswith(f"{route} needs an embedding model")

    def test_flush(self, client: httpx.Client, engine: ScriptedEngine) -> None:
        assert client.post("/flush_cache").status_code == 200
        engine.busy = True
        assert client.get("/flush_cache").status_code == 400
        assert engine.flushed == 1

    def test_abort_all(self, client: httpx.Client) -> None:
        assert client.post("/abort_request", json={"abort_all": True}).json() == {"aborted": 0}
        assert error_of(client.post("/abort_request", json={}))["param"] == "rid"

    def test_unknown_route_and_method(self, client: httpx.Client) -> None:
        assert error_of(client.get("/nowhere"))["code"] == "route_not_found"
        assert error_of(client.get("/nowhere"))["message"] == "no route /nowhere; /docs lists them"
        for path, meant in (
            ("/chat/completions", "/v1/chat/completions"),
            ("/v1/v1/chat/completions", "/v1/chat/completions"),
            ("/generat", "/generate"),
        ):
            assert error_of(client.post(path, json={}))["message"] == f"no route {path}; did you mean {meant}?"
        assert client.get("/generate").status_code == 405
