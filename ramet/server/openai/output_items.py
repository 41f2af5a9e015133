"""What a reply consists of in the words of /v1/responses: reasoning, messages and function calls, in their order, and the stream of
events that tells of them. A whole reply is what the events of a streamed one add up to."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ramet.server.parsers.scan import Arguments, CallBegin, Event, Text, Thought

Frame = dict[str, Any]
Kind = Literal["message", "reasoning", "function_call"]
ID_PREFIX: dict[Kind, str] = {"message": "msg", "reasoning": "rs", "function_call": "fc"}
STREAMED: dict[Kind, str] = {
    "message": "response.output_text",
    "reasoning": "response.reasoning_text",
    "function_call": "response.function_call_arguments",
}
"""An item's kind → the events of its text: with .delta and .done."""


@dataclass(slots=True)
class Item:
    """One item of the output, while it grows."""

    kind: Kind
    id: str
    name: str = ""
    call_id: str = ""
    text: str = ""

    def shown(self, status: str) -> Frame:
        base = {"id": self.id, "type": self.kind, "status": status}
        content = [] if status == "in_progress" else [self.part()]
        match self.kind:
            case "message":
                return base | {"role": "assistant", "content": content}
            case "reasoning":
                return base | {"summary": [], "content": content}
            case "function_call":
                return base | {"call_id": self.call_id, "name": self.name, "arguments": self.text}

    def part(self) -> Frame:
        if self.kind == "reasoning":
            return {"type": "reasoning_text", "text": self.text}
        return {"type": "output_text", "text": self.text, "annotations": [], "logprobs": []}


class OutputItems:
    """Takes the parser's events; `items` are those that are complete."""

    def __init__(self, new_call_id: Callable[[], str]) -> None:
        self.items: list[Frame] = []
        self._new_call_id = new_call_id
        self._open: Item | None = None

    def push(self, events: Sequence[Event]) -> list[Frame]:
        return [frame for event in events for frame in self._frames(event)]

    def finish(self, status: str) -> list[Frame]:
        """`status`: the last item's. A reply without anything is an empty message."""
        begun = [] if self._open or self.items else self._begin("message")
        return begun + self._close(status)

    def _frames(self, event: Event) -> list[Frame]:
        match event:
            case Text(text):
                return self._continue("message", text)
            case Thought(text):
                return self._continue("reasoning", text)
            case CallBegin(name):
                return self._begin("function_call", name)
            case Arguments(text):
                return self._continue("function_call", text)

    def _continue(self, kind: Kind, text: str) -> list[Frame]:
        begun = [] if self._open is not None and self._open.kind == kind else self._begin(kind)
        item = self._current()
        item.text += text
        return [*begun, self._told("delta", {"delta": text})]

    def _begin(self, kind: Kind, name: str = "") -> list[Frame]:
        closed = self._close("completed")
        call_id = self._new_call_id() if kind == "function_call" else ""
        item = self._open = Item(kind, f"{ID_PREFIX[kind]}_{uuid.uuid4().hex}", name, call_id)
        added = {"type": "response.output_item.added", "output_index": len(self.items), "item": item.shown("in_progress")}
        return [*closed, added, *self._part("added")]

    def _close(self, status: str) -> list[Frame]:
        if self._open is None:
            return []
        item = self._current()
        final = {"arguments": item.text, "name": item.name} if item.kind == "function_call" else {"text": item.text}
        whole = item.shown(status)
        done = {"type": "response.output_item.done", "output_index": len(self.items), "item": whole}
        frames = [self._told("done", final), *self._part("done"), done]
        self.items.append(whole)
        self._open = None
        return frames

    def _current(self) -> Item:
        assert self._open is not None, "arguments come after the beginning of their call"
        return self._open

    def _told(self, what: str, fields: Frame) -> Frame:
        kind = self._current().kind
        return {"type": f"{STREAMED[kind]}.{what}"} | self._place() | fields | ({"logprobs": []} if kind == "message" else {})

    def _part(self, what: str) -> list[Frame]:
        item = self._current()
        if item.kind == "function_call":
            return []
        return [{"type": f"response.content_part.{what}"} | self._place() | {"part": item.part()}]

    def _place(self) -> Frame:
        item = self._current()
        place: Frame = {"item_id": item.id, "output_index": len(self.items)}
        return place if item.kind == "function_call" else place | {"content_index": 0}
