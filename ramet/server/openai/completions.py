"""POST /v1/completions."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from ramet.errors import InvalidRequest, Unsupported
from ramet.runtime.request import Delta, LogprobParams
from ramet.server.fanout import collect, fan_out
from ramet.server.openai.prepare import Call, check_common, constraint_of, prepare_call
from ramet.server.openai.reply_schema import ERROR_REPLIES, CompletionReply
from ramet.server.openai.schema import CompletionRequest
from ramet.server.openai.token_logprobs import completion_logprobs
from ramet.server.openai.usage import usage_of
from ramet.server.server_context import Context, ServerContext
from ramet.server.sse import EventStream, until_disconnect

router = APIRouter(tags=["OpenAI"])

DEFAULT_MAX_TOKENS = 16


@router.post("/v1/completions", response_model=CompletionReply, responses=ERROR_REPLIES)
async def create_completion(body: CompletionRequest, context: Context, request: Request) -> Response:
    check_common(context, body)
    _check(body)
    prompts = await _prompts_of(context, body)
    call = await prepare_call(
        context,
        body,
        prompts,
        prefix="cmpl",
        max_new_tokens=DEFAULT_MAX_TOKENS if body.max_tokens is None else body.max_tokens,
        logprobs=_logprobs_of(body),
        constraint=constraint_of(body),
    )
    echoes = [context.engine.tokenizer.decode(prompt) for prompt in prompts] if body.echo else None
    if body.stream:
        return EventStream(_events(context, call, echoes))
    return JSONResponse(await until_disconnect(request.receive, _reply(context, call, echoes)))


def _check(body: CompletionRequest) -> None:
    if body.suffix:
        raise Unsupported("suffix: filling in the middle is not supported; leave it out", param="suffix")
    if body.best_of is not None and body.best_of != (body.n or 1):
        raise Unsupported("best_of: ranking more candidates than n is not supported; leave it out or equal to n", param="best_of")


def _logprobs_of(body: CompletionRequest) -> LogprobParams | None:
    if body.logprobs is None:
        return None
    return LogprobParams(start_len=0 if body.echo else -1, top=body.logprobs)


async def _prompts_of(context: ServerContext, body: CompletionRequest) -> list[list[int]]:
    """Prompts as token ids: a text, ids, or a list of either."""
    given = body.prompt
    items: list[Any] = [given] if isinstance(given, str) or (given and isinstance(given[0], int)) else list(given)
    if not items or not all(items):
        raise InvalidRequest("prompt: an empty prompt gives the model nothing to continue", param="prompt")
    return [await context.encode(item, add_special_tokens=True) if isinstance(item, str) else list(item) for item in items]


async def _reply(context: ServerContext, call: Call, echoes: list[str] | None) -> dict[str, Any]:
    with context.group(call.rid, call.generations):
        wholes = await collect(context, call.generations)
    choices = [_choice(context, call, i, whole, echoes[i // call.n] if echoes else "") for i, whole in enumerate(wholes)]
    return _frame(call, choices, usage_of(wholes, call.n))


def _choice(context: ServerContext, call: Call, index: int, whole: Delta, echo: str) -> dict[str, Any]:
    finish = whole.finish
    logprobs = None
    if call.generations[index].logprobs is not None:
        logprobs = completion_logprobs(context.engine.tokenizer, [*whole.prompt_logprobs, *whole.logprobs], 0)
    return {
        "index": index,
        "text": echo + whole.text,
        "logprobs": logprobs,
        "finish_reason": finish.kind.value if finish else None,
        "matched_stop": finish.matched if finish else None,
    }


async def _events(context: ServerContext, call: Call, echoes: list[str] | None) -> AsyncGenerator[dict[str, Any], None]:
    lasts = [Delta(request_id=generation.request_id) for generation in call.generations]
    text_lens = [0] * len(lasts)
    begun: set[int] = set()
    with context.group(call.rid, call.generations):
        async with aclosing(fan_out(context, call.generations)) as deltas:
            async for index, delta in deltas:
                lasts[index] = delta
                if not (delta.text or delta.logprobs or delta.prompt_logprobs or delta.finish or (echoes and index not in begun)):
                    continue
                echo = echoes[index // call.n] if echoes else ""
                offset = len(echo) + text_lens[index] if index in begun else 0
                choice = _chunk_choice(context, call, index, delta, offset, "" if index in begun else echo)
                begun.add(index)
                text_lens[index] += len(delta.text)
                yield _frame(call, [choice], usage_of(lasts, call.n) if call.continuous_usage else None)
    if call.include_usage:
        yield _frame(call, [], usage_of(lasts, call.n))


def _chunk_choice(context: ServerContext, call: Call, index: int, delta: Delta, offset: int, echo: str) -> dict[str, Any]:
    logprobs = None
    if call.generations[index].logprobs is not None:
        logprobs = completion_logprobs(context.engine.tokenizer, [*delta.prompt_logprobs, *delta.logprobs], offset)
    choice: dict[str, Any] = {"index": index, "text": echo + delta.text, "logprobs": logprobs, "finish_reason": None}
    if delta.finish is not None:
        choice |= {"finish_reason": delta.finish.kind.value, "matched_stop": delta.finish.matched}
    return choice


def _frame(call: Call, choices: list[dict[str, Any]], usage: dict[str, Any] | None) -> dict[str, Any]:
    frame: dict[str, Any] = {
        "id": call.id,
        "object": "text_completion",
        "created": call.created,
        "model": call.model,
        "choices": choices,
    }
    if usage is not None:
        frame["usage"] = usage
    return frame
