"""POST /v1/responses: OpenAI's newer shape of a chat. Nothing is kept: each request brings its whole conversation."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from ramet.errors import RametError
from ramet.runtime.request import Delta, FinishKind
from ramet.server.error_responses import error_body
from ramet.server.openai.chat_call import Chat, prepare_chat, reply_deltas, whole_replies
from ramet.server.openai.chat_dialect import Dialect
from ramet.server.openai.output_items import Frame, OutputItems
from ramet.server.openai.reply_schema import ERROR_REPLIES, ResponseReply
from ramet.server.openai.responses_input import ChatForm, chat_form
from ramet.server.openai.responses_schema import ResponsesRequest
from ramet.server.openai.usage import usage_of
from ramet.server.server_context import Context, ServerContext
from ramet.server.sse import EventStream, until_disconnect

router = APIRouter(tags=["OpenAI"])


@dataclass(frozen=True, slots=True)
class Asked:
    """One request, ready to run."""

    body: ResponsesRequest
    form: ChatForm
    chat: Chat


@router.post("/v1/responses", response_model=ResponseReply, responses=ERROR_REPLIES)
async def create_response(body: ResponsesRequest, context: Context, dialect: Dialect, request: Request) -> Response:
    body.check()
    form = chat_form(body)
    with form.own_names():
        chat = await prepare_chat(context, form.chat, dialect, prefix="resp")
    asked = Asked(body, form, chat)
    if body.stream:
        return EventStream(_numbered(_events(context, asked)), named=True)
    return JSONResponse(await until_disconnect(request.receive, _reply(context, asked)))


async def _reply(context: ServerContext, asked: Asked) -> Frame:
    with asked.form.own_names():
        [whole] = await whole_replies(context, asked.chat)
    output, parser = OutputItems(asked.chat.shape.new_call_id), asked.chat.shape.parser()
    output.push([*parser.push(whole.text), *parser.finish()])
    output.finish(_status(whole))
    return await _ended(context, asked, whole, output.items)


async def _events(context: ServerContext, asked: Asked) -> AsyncGenerator[Frame, None]:
    """The first event waits for the first token: until then a refusal has its real status."""
    output, parser = OutputItems(asked.chat.shape.new_call_id), asked.chat.shape.parser()
    last: Delta | None = None
    try:
        with asked.form.own_names():
            async with aclosing(reply_deltas(context, asked.chat)) as deltas:
                async for _, delta in deltas:
                    if last is None:
                        yield {"type": "response.created", "response": _response(asked, "in_progress", [])}
                        yield {"type": "response.in_progress", "response": _response(asked, "in_progress", [])}
                    last = delta
                    for frame in output.push(parser.push(delta.text)):
                        yield frame
    except RametError as error:
        if last is None:
            raise
        yield _failure(error)
        return
    assert last is not None, "a stream of the engine has a last delta"
    for frame in [*output.push(parser.finish()), *output.finish(_status(last))]:
        yield frame
    yield {"type": f"response.{_status(last)}", "response": await _ended(context, asked, last, output.items)}


async def _numbered(events: AsyncGenerator[Frame, None]) -> AsyncGenerator[Frame, None]:
    number = 0
    async with aclosing(events):
        async for event in events:
            yield event | {"sequence_number": number}
            number += 1


def _failure(error: RametError) -> Frame:
    """As the specification has it, and under `error`, where clients look that raise it."""
    return {"type": "error", "code": error.code, "message": error.message, "param": error.param} | error_body(error)


def _status(last: Delta) -> str:
    return "incomplete" if last.finish is not None and last.finish.kind is FinishKind.LENGTH else "completed"


async def _ended(context: ServerContext, asked: Asked, last: Delta, items: Sequence[Frame]) -> Frame:
    status = _status(last)
    why = {"reason": "max_output_tokens"} if status == "incomplete" else None
    thoughts = "".join(part["text"] for item in items if item["type"] == "reasoning" for part in item["content"])
    num_thoughts = len(await context.encode(thoughts, add_special_tokens=False)) if thoughts else 0
    found = {"incomplete_details": why, "completed_at": int(time.time()) if why is None else None, "usage": _usage(last, num_thoughts)}
    return _response(asked, status, items) | found


def _response(asked: Asked, status: str, items: Sequence[Frame]) -> Frame:
    body, call = asked.body, asked.chat.call
    sampling = call.generations[0].sampling
    return {
        "id": call.id.replace("-", "_", 1),
        "object": "response",
        "created_at": call.created,
        "completed_at": None,
        "status": status,
        "error": None,
        "incomplete_details": None,
        "model": call.model,
        "instructions": body.instructions,
        "output": list(items),
        "max_output_tokens": body.max_output_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "tools": [tool.model_dump() for tool in body.tools or ()],
        "tool_choice": body.tool_choice or "auto",
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "text": {"format": {"type": "text"}} | (body.text.model_dump(by_alias=True, exclude_none=True) if body.text else {}),
        "reasoning": {"effort": body.reasoning.effort if body.reasoning else None, "summary": None},
        "previous_response_id": None,
        "background": False,
        "store": False,
        "truncation": "disabled",
        "metadata": body.metadata or {},
        "user": body.user,
        "usage": None,
    }


def _usage(last: Delta, num_thoughts: int) -> dict[str, Any]:
    """Writing to the cache costs nothing here."""
    usage = usage_of([last], 1)
    return {
        "input_tokens": usage["prompt_tokens"],
        "input_tokens_details": {"cached_tokens": last.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": usage["completion_tokens"],
        "output_tokens_details": {"reasoning_tokens": num_thoughts},
        "total_tokens": usage["total_tokens"],
    }
