"""The text of a chat reply as OpenAI's message, and as the deltas that add up to it."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ramet.runtime.request import Finish, FinishKind
from ramet.server.openai.chat_dialect import ChatDialect
from ramet.server.openai.tool_use import ToolUse
from ramet.server.parsers.reply_parser import ReplyParser, parse_reply
from ramet.server.parsers.scan import Arguments, CallBegin, Event, Text, Thought

LONG_ID = "call_"


@dataclass(frozen=True, slots=True)
class ReplyShape:
    """How the replies to one request are read. `thinking`: see `ThinkTags.state_after`."""

    dialect: ChatDialect
    use: ToolUse
    thinking: bool | None
    separate_reasoning: bool
    stream_reasoning: bool

    @property
    def sampling(self) -> Mapping[str, Any]:
        """Markers that are special tokens must stay in the text, where something will read them."""
        reads = self.use.mode != "none" or (self.separate_reasoning and self.dialect.thoughts is not None)
        return {"skip_special_tokens": False} if reads and self.dialect.special_ids else {}

    def parser(self) -> ReplyParser:
        dialect = self.dialect
        return ReplyParser(
            dialect.thoughts if self.separate_reasoning else None,
            self.thinking,
            None if self.use.mode == "none" else dialect.tools,
            self.use.names,
        )

    def new_call_id(self) -> str:
        length = self.dialect.tools.wire.id_length if self.dialect.tools else len(LONG_ID)
        unique = uuid.uuid4().hex
        return (LONG_ID + unique)[:length] if length > 2 * len(LONG_ID) else unique[:length]


def message_of(shape: ReplyShape, text: str) -> dict[str, Any]:
    """A whole reply."""
    reply = parse_reply(shape.parser(), text)
    message: dict[str, Any] = {"role": "assistant", "content": reply.text or (None if reply.calls or reply.thoughts else "")}
    if reply.thoughts:
        message["reasoning_content"] = reply.thoughts
    if reply.calls:
        message["tool_calls"] = [_call(shape.new_call_id(), call.name, call.arguments) for call in reply.calls]
    return message


def finish_reason_of(finish: Finish | None, has_calls: bool) -> str | None:
    if finish is None:
        return None
    return "tool_calls" if has_calls and finish.kind is FinishKind.STOP else finish.kind.value


class ReplyStream:
    """One choice of a streamed reply."""

    def __init__(self, shape: ReplyShape) -> None:
        self.num_calls = 0
        self._shape = shape
        self._parser = shape.parser()
        self._thoughts = ""  # held back, where they are wanted in one piece

    def push(self, text: str, *, finished: bool) -> list[dict[str, Any]]:
        """Deltas of a message."""
        events = self._parser.push(text)
        if finished:
            events += self._parser.finish()
        deltas = [delta for event in events for delta in self._deltas(event)]
        return deltas + (self._held_thoughts() if finished else [])

    def _deltas(self, event: Event) -> list[dict[str, Any]]:
        match event:
            case Thought(text) if self._shape.stream_reasoning:
                return [{"reasoning_content": text}]
            case Thought(text):
                self._thoughts += text
                return []
            case Text(text):
                return [*self._held_thoughts(), {"content": text}]
            case CallBegin(name):
                self.num_calls += 1
                call = {"index": self.num_calls - 1} | _call(self._shape.new_call_id(), name, "")
                return [*self._held_thoughts(), {"tool_calls": [call]}]
            case Arguments(text):
                return [{"tool_calls": [{"index": self.num_calls - 1, "function": {"arguments": text}}]}]

    def _held_thoughts(self) -> list[dict[str, Any]]:
        thoughts, self._thoughts = self._thoughts, ""
        return [{"reasoning_content": thoughts}] if thoughts else []


def _call(call_id: str, name: str, arguments: str) -> dict[str, Any]:
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}
