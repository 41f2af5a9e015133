"""POST /v1/chat/completions."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from ramet.errors import InvalidRequest, Unsupported
from ramet.runtime.request import Delta, LogprobParams
from ramet.server.fanout import collect, fan_out
from ramet.server.openai.prepare import Call, check_common, prepare_call
from ramet.server.openai.reply_schema import ERROR_REPLIES, ChatReply
from ramet.server.openai.schema import ChatRequest, Message, Tool
from ramet.server.openai.token_logprobs import chat_logprobs
from ramet.server.openai.usage import usage_of
from ramet.server.server_context import Context, ServerContext
from ramet.server.sse import EventStream, until_disconnect

router = APIRouter(tags=["OpenAI"])


@router.post("/v1/chat/completions", response_model=ChatReply, responses=ERROR_REPLIES)
async def create_chat_completion(body: ChatRequest, context: Context, request: Request) -> Response:
    check_common(context, body)
    _check_tools(body)
    call = await prepare_call(
        context,
        body,
        [await _prompt_of(context, body)],
        prefix="chatcmpl",
        max_new_tokens=body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens,
        logprobs=_logprobs_of(body),
    )
    if body.stream:
        return EventStream(_events(context, call))
    return JSONResponse(await until_disconnect(request.receive, _reply(context, call)))


async def _prompt_of(context: ServerContext, body: ChatRequest) -> list[int]:
    """The messages in the model's own template, which writes its special tokens itself."""
    template = context.engine.chat_template
    if template is None:
        raise Unsupported(
            "the served model has no chat template; use /v1/completions, or start the server with --chat-template", param="messages"
        )
    variables = dict(body.chat_template_kwargs or {})
    if body.reasoning_effort is not None:
        variables.setdefault("reasoning_effort", body.reasoning_effort)
    hide_tools = body.tools is None or body.tool_choice == "none"
    text = await asyncio.to_thread(
        template.render,
        [_template_message(message, index) for index, message in enumerate(body.messages)],
        tools=None if hide_tools else [tool.model_dump(exclude_none=True) for tool in body.tools or ()],
        add_generation_prompt=body.add_generation_prompt and not body.continue_final_message,
        continue_final_message=body.continue_final_message,
        variables=variables or None,
    )
    return await context.encode(text, add_special_tokens=False)


def _template_message(message: Message, index: int) -> dict[str, Any]:
    fields = message.model_dump(exclude_none=True)
    fields["role"] = "system" if message.role == "developer" else message.role
    if isinstance(message.content, list):
        fields["content"] = "".join(_text_of(part, f"messages.{index}.content.{p}") for p, part in enumerate(message.content))
    elif message.content is None:
        fields["content"] = ""
    return fields


def _text_of(part: dict[str, Any], place: str) -> str:
    kind = part.get("type")
    if kind != "text":
        raise Unsupported(f"{place}: content of type '{kind}' needs a multimodal model; the served model reads text only", param=place)
    if not isinstance(part.get("text"), str):
        raise InvalidRequest(f"{place}: 'text' is missing", param=place)
    return str(part["text"])


def _check_tools(body: ChatRequest) -> None:
    """Tools reach the template; turning the answer into tool calls is refused until there are parsers."""
    choice = body.tool_choice
    if choice not in (None, "none", "auto"):
        name = "named" if isinstance(choice, dict) else choice
        raise Unsupported(f"tool_choice: '{name}' is not supported yet; use 'auto' or 'none'", param="tool_choice")
    if choice == "auto" and not body.tools:
        raise InvalidRequest("tool_choice: 'auto' needs tools", param="tool_choice")
    if body.tools and body.parallel_tool_calls is False:
        raise Unsupported("parallel_tool_calls: false is not supported yet; leave it out", param="parallel_tool_calls")
    for index, tool in enumerate(body.tools or ()):
        _check_tool(tool, f"tools.{index}.function.strict")


def _check_tool(tool: Tool, place: str) -> None:
    if tool.function.strict:
        raise Unsupported(f"{place}: strict tools are not supported yet; constrain the reply with response_format", param=place)


def _logprobs_of(body: ChatRequest) -> LogprobParams | None:
    if body.logprobs:
        return LogprobParams(top=body.top_logprobs or 0)
    if body.top_logprobs:
        raise InvalidRequest("top_logprobs needs logprobs=true", param="top_logprobs")
    return None


async def _reply(context: ServerContext, call: Call) -> dict[str, Any]:
    with context.group(call.rid, call.generations):
        wholes = await collect(context, call.generations)
    return {
        "id": call.id,
        "object": "chat.completion",
        "created": call.created,
        "model": call.model,
        "choices": [_choice(context, call, index, whole) for index, whole in enumerate(wholes)],
        "usage": usage_of(wholes, call.n),
    }


def _choice(context: ServerContext, call: Call, index: int, whole: Delta) -> dict[str, Any]:
    finish = whole.finish
    wants = call.generations[index].logprobs is not None
    return {
        "index": index,
        "message": {"role": "assistant", "content": whole.text},
        "logprobs": chat_logprobs(context.engine.tokenizer, whole.logprobs) if wants else None,
        "finish_reason": finish.kind.value if finish else None,
        "matched_stop": finish.matched if finish else None,
    }


async def _events(context: ServerContext, call: Call) -> AsyncGenerator[dict[str, Any], None]:
    """Per choice: the role, the content as it comes, the finish reason; last, on demand, the usage."""
    lasts = [Delta(request_id=generation.request_id) for generation in call.generations]
    begun: set[int] = set()
    with context.group(call.rid, call.generations):
        async with aclosing(fan_out(context, call.generations)) as deltas:
            async for index, delta in deltas:
                lasts[index] = delta
                usage = usage_of(lasts, call.n) if call.continuous_usage else None
                if index not in begun:
                    begun.add(index)
                    yield _chunk(call, index, {"role": "assistant", "content": ""}, usage)
                for event in _delta_events(context, call, index, delta, usage):
                    yield event
    if call.include_usage:
        yield _frame(call, [], usage_of(lasts, call.n))


def _delta_events(context: ServerContext, call: Call, index: int, delta: Delta, usage: dict[str, Any] | None) -> list[dict[str, Any]]:
    events = []
    wants = call.generations[index].logprobs is not None
    if delta.text or (wants and delta.logprobs):
        logprobs = chat_logprobs(context.engine.tokenizer, delta.logprobs) if wants else None
        events.append(_chunk(call, index, {"content": delta.text}, usage, logprobs=logprobs))
    if delta.finish is not None:
        events.append(_chunk(call, index, {}, usage, finish_reason=delta.finish.kind.value, matched_stop=delta.finish.matched))
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
