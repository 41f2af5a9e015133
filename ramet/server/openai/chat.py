"""POST /v1/chat/completions."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from ramet.runtime.request import Delta
from ramet.server.openai.chat_call import Chat, prepare_chat, reply_deltas, whole_replies
from ramet.server.openai.chat_dialect import Dialect
from ramet.server.openai.chat_reply import ReplyStream, finish_reason_of, message_of
from ramet.server.openai.prepare import Call
from ramet.server.openai.reply_schema import ERROR_REPLIES, ChatReply
from ramet.server.openai.schema import ChatRequest
from ramet.server.openai.token_logprobs import chat_logprobs
from ramet.server.openai.usage import usage_of
from ramet.server.server_context import Context, ServerContext
from ramet.server.sse import EventStream, until_disconnect

router = APIRouter(tags=["OpenAI"])


@router.post("/v1/chat/completions", response_model=ChatReply, responses=ERROR_REPLIES)
async def create_chat_completion(body: ChatRequest, context: Context, dialect: Dialect, request: Request) -> Response:
    chat = await prepare_chat(context, body, dialect, prefix="chatcmpl")
    if body.stream:
        return EventStream(_events(context, chat))
    return JSONResponse(await until_disconnect(request.receive, _reply(context, chat)))


async def _reply(context: ServerContext, chat: Chat) -> dict[str, Any]:
    call, wholes = chat.call, await whole_replies(context, chat)
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
    async with aclosing(reply_deltas(context, chat)) as deltas:
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
