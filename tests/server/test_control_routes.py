"""Health, info, metrics, auth, limits and the OpenAPI page."""

from __future__ import annotations

import logging

import httpx
import pytest
from fastapi import FastAPI
from prometheus_client.parser import text_string_to_metric_families

from ramet.runtime.config import ServerConfig, options_of
from ramet.runtime.engine.generation_engine import Health
from ramet.runtime.request import Finish, FinishKind
from ramet.server.app import build_app
from ramet.version import __version__
from tests.server.scripted_engine import ScriptedEngine


def app_of(engine: ScriptedEngine, **options: object) -> FastAPI:
    return build_app(engine, ServerConfig.from_options(options))


def client_of(app: FastAPI) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app=app, raise_app_exceptions=False), base_url="http://test")


@pytest.mark.parametrize(
    ("state", "status"),
    [
        (Health(True, 0.0), 200),
        (Health(True, 3.0), 200),
        (Health(True, 60.0), 503),
        (Health(False, 0.0, "the worker died"), 503),
    ],
)
async def test_health_is_truthful_and_free(state: Health, status: int) -> None:
    engine = ScriptedEngine(state=state)
    async with client_of(app_of(engine)) as client:
        response = await client.get("/health")
    assert response.status_code == status
    assert engine.seen == []
    if not state.alive:
        assert response.json()["message"] == "the worker died"


async def test_health_generate_makes_a_token_or_says_why_not() -> None:
    engine = ScriptedEngine()
    async with client_of(app_of(engine)) as client:
        assert (await client.get("/health_generate")).status_code == 200
        assert engine.seen[0].sampling.max_new_tokens == 1
        engine.ending = Finish(FinishKind.ERROR, message="broken", status=500)
        assert (await client.get("/health_generate")).json()["message"] == "broken"
    engine.step_seconds = 1000.0
    async with client_of(app_of(engine, health_timeout=0.2)) as client:
        assert (await client.get("/health_generate")).status_code == 503


@pytest.mark.parametrize("path", ["/model_info", "/get_model_info"])
async def test_model_info_tells_how_to_write_prompts(path: str) -> None:
    async with client_of(app_of(ScriptedEngine(), served_model_name="mine")) as client:
        info = (await client.get(path)).json()
    assert info["served_model_name"] == "mine"
    assert info["is_generation"] is True
    assert info["context_len"] == 512
    assert info["chat_format"]["borders"]["user"] == ["[user]", "[/user]"]


@pytest.mark.parametrize("path", ["/server_info", "/get_server_info"])
async def test_server_info_has_every_flag_and_no_secret(path: str) -> None:
    async with client_of(app_of(ScriptedEngine(), api_key="s3cret")) as client:
        response = await client.get(path, headers={"Authorization": "Bearer s3cret"})
    info = response.json()
    assert set(options_of(ServerConfig)) <= set(info)
    assert info["version"] == __version__
    assert info["stats"]["used_tokens"] == 1024
    assert "s3cret" not in response.text


async def test_metrics_have_the_contracts_names() -> None:
    engine = ScriptedEngine()
    async with client_of(app_of(engine)) as client:
        await client.post("/generate", json={"text": "Hi"})
        await client.post("/generate", json={"text": "Hi", "stream": True})
        text = (await client.get("/metrics")).text
    samples = {s.name: s.value for family in text_string_to_metric_families(text) for s in family.samples}
    contract = """prompt_tokens_total generation_tokens_total cached_tokens_total num_requests_total time_to_first_token_seconds_count
        inter_token_latency_seconds_count e2e_request_latency_seconds_count queue_time_seconds_count num_running_reqs num_queue_reqs
        num_used_tokens token_usage gen_throughput kv_available_tokens kv_evictable_tokens kv_used_tokens kv_pinned_tokens
        evicted_tokens_total forced_tokens_total num_retractions_total grammar_compile_seconds_count grammar_compile_seconds_sum
        grammar_mask_seconds_count grammar_mask_seconds_sum"""
    assert {f"ramet:{name}" for name in contract.split()} <= set(samples)
    assert samples["ramet:cached_tokens_total"] / samples["ramet:prompt_tokens_total"] == 0.75
    assert samples["ramet:token_usage"] == 0.25
    assert samples["ramet:num_requests_total"] == 2
    assert samples["ramet:time_to_first_token_seconds_count"] == 2
    assert samples["ramet:inter_token_latency_seconds_count"] == 8


async def test_counters_survive_a_silent_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    from ramet.errors import WorkerDied

    engine = ScriptedEngine()

    async def dead() -> None:
        raise WorkerDied("gone")

    async with client_of(app_of(engine)) as client:
        await client.get("/metrics")
        monkeypatch.setattr(engine, "stats", dead)
        assert 'ramet:prompt_tokens_total{model_name="tiny"} 80.0' in (await client.get("/metrics")).text


async def test_metrics_can_be_switched_off_and_belong_to_one_app() -> None:
    async with client_of(app_of(ScriptedEngine(), enable_metrics=False)) as client:
        assert (await client.get("/metrics")).status_code == 404
    first, second = app_of(ScriptedEngine()), app_of(ScriptedEngine())
    async with client_of(first) as one, client_of(second) as two:
        await one.post("/generate", json={"text": "Hi"})
        assert "num_requests_total{" not in (await two.get("/metrics")).text


async def test_api_key() -> None:
    async with client_of(app_of(ScriptedEngine(), api_key="s3cret")) as client:
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "s3cret"}):
            refused = await client.post("/generate", json={"text": "Hi"}, headers=headers)
            assert refused.status_code == 401
            assert refused.json()["error"]["code"] == "invalid_api_key"
        accepted = await client.post("/generate", json={"text": "Hi"}, headers={"Authorization": "Bearer s3cret"})
        assert accepted.status_code == 200
        assert (await client.get("/health")).status_code == 200
        assert (await client.get("/metrics")).status_code == 200


@pytest.mark.parametrize("announced", [True, False])
async def test_large_bodies_are_413(announced: bool) -> None:
    body = b'{"text": "' + b"x" * 4000 + b'"}'

    async def pieces():  # type: ignore[no-untyped-def]
        yield body[:2000]
        yield body[2000:]

    async with client_of(app_of(ScriptedEngine(), max_body_mb=0.002)) as client:
        content = body if announced else pieces()
        response = await client.post("/generate", content=content, headers={"content-type": "application/json"})
    assert response.status_code == 413
    assert "--max-body-mb" in response.json()["error"]["message"]


async def test_a_crash_is_one_500_and_tells_no_internals() -> None:
    engine = ScriptedEngine(chat_template=None)
    engine.refusal = ZeroDivisionError("secret detail")  # type: ignore[assignment]
    async with client_of(app_of(engine)) as client:
        response = await client.post("/generate", json={"text": "Hi"})
        assert response.status_code == 500
        assert "secret" not in response.text
        assert 'status="500"} 1.0' in (await client.get("/metrics")).text


async def test_openapi_has_real_schemas() -> None:
    async with client_of(app_of(ScriptedEngine())) as client:
        page = (await client.get("/openapi.json")).json()
        assert (await client.get("/docs")).status_code == 200
    operation = page["paths"]["/v1/chat/completions"]["post"]
    assert operation["requestBody"]["content"]["application/json"]["schema"]["$ref"].endswith("/ChatRequest")
    assert operation["responses"]["200"]["content"]["application/json"]["schema"]["$ref"].endswith("/ChatReply")
    assert operation["responses"]["400"]["content"]["application/json"]["schema"]["$ref"].endswith("/ErrorReply")
    assert "input_ids" in page["components"]["schemas"]["GenerateRequest"]["properties"]


async def test_requests_are_logged_on_demand(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.getLogger("ramet"), "propagate", True)
    monkeypatch.setattr(logging.getLogger("ramet"), "handlers", [])  # what other tests of this process configured
    caplog.set_level(logging.INFO, logger="ramet")
    for wanted in (False, True):
        caplog.clear()
        async with client_of(app_of(ScriptedEngine(), log_requests=wanted)) as client:
            await client.post("/generate", json={"text": "Hi", "rid": "r1"})
        lines = [record.getMessage() for record in caplog.records if "r1" in record.getMessage()]
        assert len(lines) == (2 if wanted else 0)
    assert lines[1] == "finished r1: stop, 5 tokens"
