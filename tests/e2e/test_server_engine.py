"""The server around a real engine (scheduler, radix cache, worker loop) whose model is a hash: what crosses all layers at once."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest

from tests.fakes import fake_engine
from tests.server.live_server import live_server
from tests.waiting import PATIENCE, wait_until

GREEDY = {"temperature": 0.0, "ignore_eos": True}


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    engine = fake_engine(slow=True)
    try:
        with live_server(engine) as url:
            yield url
    finally:
        engine.close_now()


@pytest.fixture
async def client(url: str) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=url, timeout=PATIENCE) as client:
        yield client


def gauges(text: str) -> dict[str, float]:
    return {name: float(value) for name, value in re.findall(r"^ramet:(\w+)\{[^}]*\} (\S+)$", text, flags=re.MULTILINE)}


async def test_streamed_and_whole_texts_agree(client: httpx.AsyncClient) -> None:
    body: dict[str, Any] = {"text": "tell me", "sampling_params": GREEDY | {"max_new_tokens": 12}}
    whole = (await client.post("/generate", json=body)).json()
    streamed = (await client.post("/generate", json=body | {"stream": True})).text
    last = streamed.split("\n\n")[-3].removeprefix("data: ")
    assert httpx.Response(200, text=last).json()["output_ids"] == whole["output_ids"]
    assert whole["meta_info"]["completion_tokens"] == 12
    assert whole["meta_info"]["finish_reason"] == {"type": "length", "length": 12}


async def test_the_second_request_hits_the_cache(client: httpx.AsyncClient) -> None:
    body = {"model": "default", "prompt": "a rather long shared prompt", "max_tokens": 2, "temperature": 0.0}
    usages = [(await client.post("/v1/completions", json=body)).json()["usage"] for _ in range(2)]
    assert usages[0]["prompt_tokens_details"]["cached_tokens"] < usages[1]["prompt_tokens_details"]["cached_tokens"]
    assert usages[1]["prompt_tokens_details"]["cached_tokens"] == usages[1]["prompt_tokens"] - 1


async def test_too_long_is_a_400_that_says_the_limit(client: httpx.AsyncClient) -> None:
    body = {"model": "default", "prompt": "x", "max_tokens": 10**6}
    response = await client.post("/v1/completions", json=body)
    assert response.status_code == 400
    error = response.json()["error"]
    assert (error["code"], error["param"]) == ("context_length_exceeded", "max_tokens")
    assert "4096" in error["message"]


async def test_a_bad_grammar_harms_only_its_own_request(client: httpx.AsyncClient) -> None:
    def body(regex: str) -> dict[str, Any]:
        return {"text": "x", "sampling_params": {"max_new_tokens": 20, "regex": regex}}

    good, bad = await asyncio.gather(*(client.post("/generate", json=body(regex)) for regex in ("[ab]{3}", "(ab")))
    assert re.fullmatch("[ab]{3}", good.json()["text"])
    assert (bad.status_code, bad.json()["error"]["code"]) == (400, "invalid_grammar")


async def test_crowd_with_leavers_ends_with_no_page_in_use(client: httpx.AsyncClient, url: str) -> None:
    async def one(index: int) -> int:
        length = 60 if index % 3 else 3000
        body = {"text": f"client {index}", "stream": True, "sampling_params": GREEDY | {"max_new_tokens": length}}
        num_events = num_tokens = 0
        async with client.stream("POST", "/generate", json=body) as response:
            async for line in response.aiter_lines():
                if line.startswith("data: {"):
                    num_events += 1
                    num_tokens = json.loads(line.removeprefix("data: "))["meta_info"]["completion_tokens"]
                if index % 3 == 0 and num_events == 5:
                    break
        return num_tokens

    counts = await asyncio.gather(*(one(index) for index in range(24)))
    assert all(5 <= count < 3000 for count in counts[::3])
    assert all(count == 60 for index, count in enumerate(counts) if index % 3)

    gone = 'ramet:num_requests_total{model_name="fake",status="499"} 8.0'

    def idle() -> bool:
        text = httpx.get(f"{url}/metrics", timeout=PATIENCE).text
        now = gauges(text)
        return now["num_running_reqs"] == now["num_used_tokens"] == 0 and gone in text

    await asyncio.to_thread(wait_until, idle)
    text = (await client.get("/metrics")).text
    now = gauges(text)
    assert now["kv_available_tokens"] + now["kv_evictable_tokens"] == now["max_total_num_tokens"]
    assert (await client.post("/flush_cache")).status_code == 200
    assert gauges((await client.get("/metrics")).text)["kv_evictable_tokens"] == 0


async def test_deadline(client: httpx.AsyncClient) -> None:
    body = {"model": "default", "prompt": "x", "max_tokens": 2000, "ignore_eos": True, "timeout_s": 0.1}
    response = await client.post("/v1/completions", json=body)
    assert (response.status_code, response.json()["error"]["code"]) == (408, "deadline_exceeded")
