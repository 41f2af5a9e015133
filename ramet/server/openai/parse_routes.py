"""POST /parse_function_call and /separate_reasoning: the parsers by themselves, for text that was generated elsewhere."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel

from ramet.errors import InvalidRequest
from ramet.server.openai.chat_dialect import ChatDialect, Dialect
from ramet.server.openai.reply_schema import ERROR_REPLIES
from ramet.server.openai.schema import Strict, Tool
from ramet.server.parsers.formats import think_tags, tool_format
from ramet.server.parsers.reply_parser import ReplyParser, parse_reply
from ramet.server.parsers.think_tags import ThinkTags
from ramet.server.parsers.tool_format import ToolFormat

router = APIRouter(tags=["native"])


class ParseCallRequest(Strict):
    text: str
    tools: list[Tool]
    tool_call_parser: str | None = None


class ParsedCallItem(BaseModel):
    tool_index: int
    name: str
    parameters: str


class ParseCallReply(BaseModel):
    normal_text: str
    calls: list[ParsedCallItem]


class SeparateReasoningRequest(Strict):
    text: str
    reasoning_parser: str | None = None


class SeparateReasoningReply(BaseModel):
    reasoning_text: str
    text: str


@router.post("/parse_function_call", response_model=ParseCallReply, responses=ERROR_REPLIES)
async def parse_function_call(body: ParseCallRequest, dialect: Dialect) -> dict[str, Any]:
    """`tool_call_parser`: by default the server's own. `tool_index` counts the calls, as in a chat reply."""
    names = {tool.function.name for tool in body.tools}
    reply = parse_reply(ReplyParser(tool_format=_format(body.tool_call_parser, dialect), tools=names), body.text)
    calls = [{"tool_index": i, "name": call.name, "parameters": call.arguments} for i, call in enumerate(reply.calls)]
    return {"normal_text": reply.text, "calls": calls}


@router.post("/separate_reasoning", response_model=SeparateReasoningReply, responses=ERROR_REPLIES)
async def separate_reasoning(body: SeparateReasoningRequest, dialect: Dialect) -> dict[str, str]:
    """`reasoning_parser`: by default the server's own."""
    tags = _tags(body.reasoning_parser, dialect)
    reply = parse_reply(ReplyParser(tags, tags.state_after("")), body.text)
    return {"reasoning_text": reply.thoughts, "text": reply.text}


def _format(name: str | None, dialect: ChatDialect) -> ToolFormat:
    if name is not None:
        return tool_format(name)
    if dialect.tools is None:
        raise InvalidRequest("tool_call_parser: this server has none; name one", param="tool_call_parser")
    return dialect.tools


def _tags(name: str | None, dialect: ChatDialect) -> ThinkTags:
    if name is not None:
        return think_tags(name)
    if dialect.thoughts is None:
        raise InvalidRequest("reasoning_parser: this server has none; name one", param="reasoning_parser")
    return dialect.thoughts
