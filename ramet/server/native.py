"""POST /generate and the routes around it that SGLang's clients use."""

from __future__ import annotations

import uuid
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import fields
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from ramet.errors import GrammarError, InvalidRequest, Unsupported
from ramet.runtime.engine.native_format import Expansion, NativeCall, NativeResult, expand
from ramet.runtime.sampling_params import GRAMMAR_FIELDS
from ramet.server.fanout import collect, fan_out
from ramet.server.native_schema import (
    DetokenizeReply,
    DetokenizeRequest,
    GenerateReply,
    GenerateRequest,
    TokenizeReply,
    TokenizeRequest,
)
from ramet.server.openai.reply_schema import ERROR_REPLIES
from ramet.server.refused_fields import refuse
from ramet.server.server_context import Context, ServerContext
from ramet.server.sse import EventStream, until_disconnect

router = APIRouter(tags=["native"])

REFUSED = {
    "lora_path": "LoRA adapters are not supported yet",
    "image_data": "the served model reads text only",
    "video_data": "the served model reads text only",
    "audio_data": "the served model reads text only",
    "custom_logit_processor": "code from a request never runs here; use a grammar or logit_bias",
    "return_hidden_states": "this server gives no hidden states",
    "session_params": "there are no sessions; send the whole prompt, what is cached of it is not computed again",
}


@router.put("/generate", response_model=None, include_in_schema=False)
@router.post("/generate", response_model=GenerateReply | list[GenerateReply], responses=ERROR_REPLIES)
async def generate(body: GenerateRequest, context: Context, request: Request) -> Response:
    """Text or token ids in, text and token ids out; a list for a batch or n > 1, server-sent events with `stream`."""
    refuse(body, REFUSED, asks_nothing=(None, False, [], ""))
    batch = _expand(body)
    rid = body.rid if isinstance(body.rid, str) else uuid.uuid4().hex
    tokenizer = context.engine.tokenizer if body.return_text_in_logprobs else None
    results = [NativeResult(generation.logprobs, tokenizer) for generation in batch.generations]
    if body.stream:
        return EventStream(_events(context, rid, batch, results, incremental=body.incremental))
    return JSONResponse(await until_disconnect(request.receive, _reply(context, rid, batch, results)))


def _expand(body: GenerateRequest) -> Expansion:
    try:
        return expand(NativeCall(**{f.name: getattr(body, f.name) for f in fields(NativeCall)}))
    except InvalidRequest as error:
        if error.param is not None and error.param not in GenerateRequest.model_fields:
            error.param = f"sampling_params.{error.param}"
        raise


async def _reply(context: ServerContext, rid: str, batch: Expansion, results: list[NativeResult]) -> Any:
    with context.group(rid, batch.generations), _naming(batch):
        for result, whole in zip(results, await collect(context, batch.generations, pass_aborts=True), strict=True):
            result.add(whole)
    replies = [result.reply() for result in results]
    return replies if batch.is_list else replies[0]


async def _events(
    context: ServerContext, rid: str, batch: Expansion, results: list[NativeResult], *, incremental: bool
) -> AsyncGenerator[dict[str, Any], None]:
    """Each event carries the text so far (SGLang's clients rely on it), or only what is new."""
    with context.group(rid, batch.generations), _naming(batch):
        async with aclosing(fan_out(context, batch.generations, pass_aborts=True)) as deltas:
            async for index, delta in deltas:
                result = results[index]
                result.add(delta)
                event = result.increment(delta) if incremental else result.reply()
                yield event | ({"index": index} if batch.is_list else {})


@contextmanager
def _naming(batch: Expansion) -> Iterator[None]:
    """A grammar that is refused while it compiles is a field of the request."""
    try:
        yield
    except GrammarError as error:
        given = {name for generation in batch.generations for name in GRAMMAR_FIELDS if getattr(generation.sampling, name) is not None}
        error.param = f"sampling_params.{given.pop()}" if len(given) == 1 else error.param
        raise


@router.put("/encode", include_in_schema=False)
@router.post("/v1/embeddings", include_in_schema=False)
@router.post("/v1/rerank", include_in_schema=False)
@router.post("/v1/score", include_in_schema=False)
@router.post("/encode", responses=ERROR_REPLIES)
async def encode(context: Context, request: Request) -> Response:
    raise Unsupported(f"{request.url.path} needs an embedding model; '{context.model_name}' generates text: use /generate")


@router.post("/tokenize", response_model=TokenizeReply, responses=ERROR_REPLIES)
@router.post("/v1/tokenize", response_model=TokenizeReply, responses=ERROR_REPLIES)
async def tokenize(body: TokenizeRequest, context: Context) -> dict[str, Any]:
    context.check_model(body.model)
    prompts = body.prompt if isinstance(body.prompt, list) else [body.prompt]
    tokens = [await context.encode(prompt, add_special_tokens=body.add_special_tokens) for prompt in prompts]
    is_list = isinstance(body.prompt, list)
    return {
        "tokens": tokens if is_list else tokens[0],
        "count": [len(ids) for ids in tokens] if is_list else len(tokens[0]),
        "max_model_len": context.engine.model.context_len,
    }


@router.post("/detokenize", response_model=DetokenizeReply, responses=ERROR_REPLIES)
@router.post("/v1/detokenize", response_model=DetokenizeReply, responses=ERROR_REPLIES)
async def detokenize(body: DetokenizeRequest, context: Context) -> dict[str, Any]:
    context.check_model(body.model)
    decode = context.engine.tokenizer.decode
    given: list[Any] = list(body.tokens)
    if given and isinstance(given[0], list):
        return {"text": [decode(ids, skip_special_tokens=body.skip_special_tokens) for ids in given]}
    return {"text": decode(given, skip_special_tokens=body.skip_special_tokens)}
