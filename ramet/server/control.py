"""Health, information, cache and abort: what operators and launch scripts call."""

from __future__ import annotations

import asyncio
import uuid
from contextlib import aclosing, suppress
from dataclasses import asdict, fields, is_dataclass
from typing import Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse, PlainTextResponse, Response

from ramet.errors import InvalidRequest, RametError, Unsupported
from ramet.runtime.engine.generation_engine import GenerationEngine
from ramet.runtime.engine.native_format import error_of
from ramet.runtime.request import EngineStats, Generation, SamplingParams
from ramet.server.native_schema import AbortRequest
from ramet.server.openai.reply_schema import ERROR_REPLIES
from ramet.server.server_context import Context, ServerContext
from ramet.server.streams import as_generator
from ramet.version import __version__

router = APIRouter(tags=["control"])

STATS_TIMEOUT_SECONDS = 5.0
SECRETS = ("api_key",)


@router.get("/health")
async def health(context: Context) -> Response:
    """200 when the worker answers and makes progress; else 503 with the reason. Costs no generation."""
    state = context.engine.health()
    limit = context.config.engine.supervision.health_timeout
    if not state.alive:
        return _unhealthy(state.message or "the worker does not answer")
    if state.idle_seconds > limit:
        return _unhealthy(f"work waits, but no step has finished for {state.idle_seconds:.0f} s")
    return JSONResponse({"status": "ok"})


@router.get("/health_generate")
async def health_generate(context: Context) -> Response:
    """200 when one token can be generated within the health timeout."""
    limit = context.config.engine.supervision.health_timeout
    try:
        await asyncio.wait_for(generate_one_token(context.engine), limit)
    except TimeoutError:
        return _unhealthy(f"no token within {limit:g} s")
    except RametError as error:
        return _unhealthy(error.message)
    return JSONResponse({"status": "ok"})


def _unhealthy(reason: str) -> Response:
    return JSONResponse({"status": "unhealthy", "message": reason}, status_code=503, headers={"Retry-After": "1"})


async def generate_one_token(engine: GenerationEngine) -> None:
    """Warm-up and deep health check in one: a whole trip through the engine, in a cache namespace of its own."""
    one = Generation(
        request_id=f"health-{uuid.uuid4().hex}",
        input_ids=(0,),
        sampling=SamplingParams(max_new_tokens=1, temperature=0.0, ignore_eos=True),
        cache_namespace="health",
    )
    async with aclosing(as_generator(engine.generate(one))) as deltas:
        async for delta in deltas:
            if delta.finish is not None and delta.finish.status >= 400:
                raise error_of(delta.finish)


@router.get("/model_info")
@router.get("/get_model_info")
async def model_info(context: Context) -> dict[str, Any]:
    model = context.engine.model
    options = context.config.engine.model
    return {
        "model_path": options.model_path or model.name,
        "tokenizer_path": options.tokenizer_path or options.model_path or model.name,
        "served_model_name": context.model_name,
        "is_generation": True,
        "has_image_understanding": False,
        "has_audio_understanding": False,
        "preferred_sampling_params": dict(context.engine.generation_defaults),
        "load_format": options.load_format,
        "architectures": [model.architecture],
        "context_length": model.context_len,
        "chat_format": _chat_format(context),
    } | asdict(model)


def _chat_format(context: ServerContext) -> dict[str, Any] | None:
    """The chat template as borders, with which a client without a tokenizer writes prompts; null where there is none."""
    template = context.engine.chat_template
    if template is None:
        return None
    try:
        chat = template.chat_format()
    except Unsupported:
        return None
    borders = {role: list(pair) for role, pair in chat.borders.items()}
    return {"borders": borders, "bos": chat.bos, "default_system": chat.default_system}


@router.get("/server_info")
@router.get("/get_server_info")
async def server_info(context: Context) -> dict[str, Any]:
    """Every launch flag with its value, the model, the engine's counters and the version."""
    stats = await engine_stats(context)
    model = context.engine.model
    state = {
        "last_gen_throughput": stats.gen_throughput,
        "memory_usage": {
            "weight": stats.weight_bytes,
            "kvcache": stats.kv_pool_bytes,
            "resident": stats.resident_bytes,
            "token_capacity": stats.total_tokens,
        },
    }
    return flat_options(context.config) | {
        "version": __version__,
        "served_model_name": context.model_name,
        "model": asdict(model),
        "vocab_size": model.vocab_size,
        "max_total_num_tokens": stats.total_tokens,
        "started": context.started,
        "stats": asdict(stats),
        "internal_states": [state],
    }


def flat_options(config: Any) -> dict[str, Any]:
    """A composed config as flat names; secrets are masked."""
    found: dict[str, Any] = {}
    for f in fields(config):
        value = getattr(config, f.name)
        if is_dataclass(value):
            found |= flat_options(value)
        else:
            found[f.name] = "***" if f.name in SECRETS and value else value
    return found


async def engine_stats(context: ServerContext) -> EngineStats:
    """The engine's counters; when the worker does not answer, the last ones heard of, so that counters never run backwards."""
    with suppress(TimeoutError, RametError):
        context.metrics.stats = await asyncio.wait_for(context.engine.stats(), STATS_TIMEOUT_SECONDS)
    return context.metrics.stats


@router.get("/flush_cache", include_in_schema=False)
@router.post("/flush_cache", responses=ERROR_REPLIES)
async def flush_cache(context: Context) -> Response:
    if await context.engine.flush_cache():
        return PlainTextResponse("Cache flushed.\n")
    raise InvalidRequest("the cache is in use: requests run or wait; try again when they have ended")


@router.post("/abort_request", responses=ERROR_REPLIES)
async def abort_request(body: AbortRequest, context: Context) -> dict[str, int]:
    """Abort the request with exactly this rid, or all; `aborted` says how many. An unknown rid (it may have just ended) is no error."""
    if body.abort_all:
        return {"aborted": await context.engine.abort_all()}
    if body.rid is None:
        raise InvalidRequest("give rid, or abort_all=true", param="rid")
    return {"aborted": int(await context.abort(body.rid))}
