"""POST /v1/chat/completions."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from ramet.errors import GrammarError, InvalidRequest, Unsupported
from ramet.runtime.request import Delta, LogprobParams
from ramet.server.fanout import collect, fan_out
from ramet.server.openai.chat_dialect import ChatDialect, Dialect
from ramet.server.openai.chat_prompt import prompt_text, thinking_of
from ramet.server.openai.chat_reply import ReplyShape, ReplyStream, finish_reason_of, message_of
from ramet.server.openai.grammar_complaints import blamed
from ramet.server.openai.prepare import Call, check_common, constraint_of, prepare_call
from ramet.server.openai.reply_grammar import ReplyConstraint, reply_constraint
from ramet.server.openai.reply_schema import ERROR_REPLIES, ChatReply
from ramet.server.openai.schema import ChatRequest
from ramet.server.openai.token_logprobs import chat_logprobs
from ramet.server.openai.tool_use import tool_use_of
from ramet.server.openai.usage import usage_of
from ramet.server.server_context import Context, ServerContext
from ramet.server.sse import EventStream, until_disconnect

router = APIRouter(tags=["OpenAI"])

REFUSED = {
    "audio": "the served model writes text only",
    "web_search_options": "the server searches nothing; give a tool that does, and answer its calls",
    "moderation": "the server judges no text; ask a model that does",
    "functions": "use tools, as [{'type': 'function', 'function': …}]",
    "function_call": "use tool_choice",
}


@dataclass(frozen=True, slots=True)
class Chat:
    """A chat request, ready to run."""

    body: ChatRequest
    call: Call
    shape: ReplyShape
    constraint: ReplyConstraint


@router.post("/v1/chat/completions", response_model=ChatReply, responses=ERROR_REPLIES)
async def create_chat_completion(body: ChatRequest, context: Context, dialect: Dialect, request: Request) -> Response:
    check_common(context, body)
    _check(body)
    chat = await _prepare(context, body, dialect)
    if body.stream:
        return EventStream(_events(context, chat))
    return JSONResponse(await until_disconnect(request.receive, _reply(context, chat)))


def _check(body: ChatRequest) -> None:
    """Refuse in words what a text model here cannot give."""
    for index, modality in enumerate(body.modalities or ()):
        if modality != "text":
            message = f"modalities[{index}]: the served model writes text only, not {modality}; leave modalities out"
            raise Unsupported(message, param=f"modalities[{index}]")
    for name, reason in REFUSED.items():
        if getattr(body, name) is not None:
            raise Unsupported(f"{name}: {reason}", param=name)


async def _prepare(context: ServerContext, body: ChatRequest, dialect: ChatDialect) -> Chat:
    use = tool_use_of(body, dialect)
    prompt = await prompt_text(context, body, dialect)
    thinking = thinking_of(body, dialect, prompt)
    shape = ReplyShape(dialect, use, thinking, body.separate_reasoning, body.stream_reasoning)
    constraint = reply_constraint(dialect, use, thinking, constraint_of(body))
    call = await prepare_call(
        context,
        body,
        [await context.encode(prompt, add_special_tokens=False)],
        prefix="chatcmpl",
        max_new_tokens=body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens,
        logprobs=_logprobs_of(body),
        constraint={**constraint.sampling, **shape.sampling},
    )
    return Chat(body, call, shape, constraint)


def _logprobs_of(body: ChatRequest) -> LogprobParams | None:
    if body.logprobs:
        return LogprobParams(top=body.top_logprobs or 0)
    if body.top_logprobs:
        raise InvalidRequest("top_logprobs needs logprobs=true", param="top_logprobs")
    return None


async def _reply(context: ServerContext, chat: Chat) -> dict[str, Any]:
    call = chat.call
    with context.group(call.rid, call.generations):
        try:
            wholes = await collect(context, call.generations)
        except GrammarError as error:
            raise blamed(chat.body, chat.constraint, error) from error
    return {
        "id": call.id,
        "object": "chat.completion",
        "created": call.created,
        "model": call.model,
        "choices": [_choice(context, chat, index, whole) for index, whole in enumerate(wholes)],
        "usage": usage_of(wholes, call.n),
    }


def _choice(context: ServerContext, chat: Chat, index: int, whole: Delta) -> dict[str, Any]:
    finish, message = whole.finish, message_of(chat.shape, whole.text)
    wants = chat.call.generations[index].logprobs is not None
    return {
        "index": index,
        "message": message,
        "logprobs": chat_logprobs(context.engine.tokenizer, whole.logprobs) if wants else None,
        "finish_reason": finish_reason_of(finish, "tool_calls" in message),
        "matched_stop": finish.matched if finish else None,
    }


async def _events(context: ServerContext, chat: Chat) -> AsyncGenerator[dict[str, Any], None]:
    """Per choice: the role, the pieces of the message as they come, the finish reason; last, on demand, the usage."""
    call = chat.call
    lasts = [Delta(request_id=generation.request_id) for generation in call.generations]
    streams: dict[int, ReplyStream] = {}
    with context.group(call.rid, call.generations):
        async with aclosing(_deltas(context, chat)) as deltas:
            async for index, delta in deltas:
                lasts[index] = delta
                usage = usage_of(lasts, call.n) if call.continuous_usage else None
                if index not in streams:
                    streams[index] = ReplyStream(chat.shape)
                    yield _chunk(call, index, {"role": "assistant", "content": ""}, usage)
                for event in _delta_events(context, call, index, delta, streams[index], usage):
                    yield event
    if call.include_usage:
        yield _frame(call, [], usage_of(lasts, call.n))


async def _deltas(context: ServerContext, chat: Chat) -> AsyncGenerator[tuple[int, Delta], None]:
    try:
        async with aclosing(fan_out(context, chat.call.generations)) as deltas:
            async for item in deltas:
                yield item
    except GrammarError as error:
        raise blamed(chat.body, chat.constraint, error) from error


def _delta_events(
    context: ServerContext, call: Call, index: int, delta: Delta, stream: ReplyStream, usage: dict[str, Any] | None
) -> list[dict[str, Any]]:
    """The logprobs of a delta's tokens go with its first piece, and alone where its text is held back."""
    finish = delta.finish
    pieces = stream.push(delta.text, finished=finish is not None)
    wants = call.generations[index].logprobs is not None and delta.logprobs
    if wants and not pieces:
        pieces = [{"content": ""}]
    events = [_chunk(call, index, piece, usage) for piece in pieces]
    if wants:
        events[0]["choices"][0]["logprobs"] = chat_logprobs(context.engine.tokenizer, delta.logprobs)
    if finish is not None:
        reason = finish_reason_of(finish, stream.num_calls > 0)
        events.append(_chunk(call, index, {}, usage, finish_reason=reason, matched_stop=finish.matched))
    return events


def _chunk(call: Call, index: int, delta: dict[str, Any], usage: dict[str, Any] | None, **rest: Any) -> dict[str, Any]:
    choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": None} | rest
    return _frame(call, [choice], usage)


def _frame(call: Call, choices: list[dict[str, Any]], usage: dict[str, Any] | None) -> dict[str, Any]:
    frame: dict[str, Any] = {
        "id": call.id,
        "object": "chat.completion.chunk",
        "created": call.created,
        "model": call.model,
        "choices": choices,
    }
    if usage is not None:
        frame["usage"] = usage
    return frame
