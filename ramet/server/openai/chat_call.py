"""A chat request, ready to run, whichever route brought it."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass

from ramet.errors import GrammarError, InvalidRequest, Unsupported
from ramet.runtime.request import Delta, LogprobParams
from ramet.server.fanout import collect, fan_out
from ramet.server.openai.chat_dialect import ChatDialect
from ramet.server.openai.chat_prompt import prompt_text, thinking_of
from ramet.server.openai.chat_reply import ReplyShape
from ramet.server.openai.grammar_complaints import blamed
from ramet.server.openai.prepare import Call, check_common, constraint_of, prepare_call
from ramet.server.openai.reply_grammar import ReplyConstraint, reply_constraint
from ramet.server.openai.schema import ChatRequest
from ramet.server.openai.tool_use import tool_use_of
from ramet.server.refused_fields import refuse
from ramet.server.server_context import ServerContext

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


async def prepare_chat(context: ServerContext, body: ChatRequest, dialect: ChatDialect, *, prefix: str) -> Chat:
    check_common(context, body)
    _check(body)
    use = tool_use_of(body, dialect)
    prompt = await prompt_text(context, body, dialect)
    thinking = thinking_of(body, dialect, prompt)
    shape = ReplyShape(dialect, use, thinking, body.separate_reasoning, body.stream_reasoning)
    constraint = reply_constraint(dialect, use, thinking, constraint_of(body))
    call = await prepare_call(
        context,
        body,
        [await context.encode(prompt, add_special_tokens=False)],
        prefix=prefix,
        max_new_tokens=body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens,
        logprobs=_logprobs_of(body),
        constraint={**constraint.sampling, **shape.sampling},
    )
    return Chat(body, call, shape, constraint)


async def whole_replies(context: ServerContext, chat: Chat) -> list[Delta]:
    """Each choice as one delta."""
    with context.group(chat.call.rid, chat.call.generations):
        try:
            return await collect(context, chat.call.generations)
        except GrammarError as error:
            raise blamed(chat.body, chat.constraint, error) from error


async def reply_deltas(context: ServerContext, chat: Chat) -> AsyncGenerator[tuple[int, Delta], None]:
    """(choice, delta) as they come."""
    with context.group(chat.call.rid, chat.call.generations):
        try:
            async with aclosing(fan_out(context, chat.call.generations)) as deltas:
                async for item in deltas:
                    yield item
        except GrammarError as error:
            raise blamed(chat.body, chat.constraint, error) from error


def _check(body: ChatRequest) -> None:
    """Refuse in words what a text model here cannot give."""
    for index, modality in enumerate(body.modalities or ()):
        if modality != "text":
            message = f"modalities[{index}]: the served model writes text only, not {modality}; leave modalities out"
            raise Unsupported(message, param=f"modalities[{index}]")
    refuse(body, REFUSED)


def _logprobs_of(body: ChatRequest) -> LogprobParams | None:
    if body.logprobs:
        return LogprobParams(top=body.top_logprobs or 0)
    if body.top_logprobs:
        raise InvalidRequest("top_logprobs needs logprobs=true", param="top_logprobs")
    return None
