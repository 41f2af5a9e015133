"""The whole pipeline: text → thoughts, answer, tool calls, for a streamed reply and for a whole one alike."""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, field

from ramet.server.parsers.scan import Arguments, CallBegin, Event, Scan, Steps, Text, Thought
from ramet.server.parsers.think_tags import ThinkTags
from ramet.server.parsers.tool_format import ToolFormat

Reading = Callable[[Scan], Steps[None]]


class Parser:
    """One reading over one text."""

    def __init__(self, reading: Reading) -> None:
        self._scan = Scan()
        self._steps: Steps[None] | None = reading(self._scan)
        next(self._steps, None)

    def push(self, text: str) -> list[Event]:
        if self._steps is None:
            raise ValueError("the text has ended; make another parser for another text")
        if text:
            self._steps.send(text)
        return self._scan.take_events()

    def finish(self) -> list[Event]:
        """The text is complete: what was held until it was clear what it is."""
        if self._steps is not None:
            steps, self._steps = self._steps, None
            try:
                steps.send("")
            except StopIteration:
                self._scan.finish()
        return self._scan.take_events()


class ReplyParser:
    """`thoughts`: None leaves them in the text; `thinking`: where the reply begins (`ThinkTags.state_after`). `tools`: names that may
    be called; without a format calls stay in the text."""

    def __init__(
        self,
        thoughts: ThinkTags | None = None,
        thinking: bool | None = None,
        tool_format: ToolFormat | None = None,
        tools: Container[str] = (),
    ) -> None:
        self._thoughts = Parser(lambda scan: thoughts.read(scan, thinking)) if thoughts else None
        self._calls = Parser(lambda scan: tool_format.read(scan, tools)) if tool_format else None

    def push(self, text: str) -> list[Event]:
        """Events of a piece of the reply."""
        if self._thoughts is None:
            return self._split(text)
        return self._route(self._thoughts.push(text))

    def finish(self) -> list[Event]:
        events = self._route(self._thoughts.finish()) if self._thoughts else []
        return events + (self._calls.finish() if self._calls else [])

    def _route(self, events: Sequence[Event]) -> list[Event]:
        """Only the answer may hold calls."""
        return [part for event in events for part in (self._split(event.text) if isinstance(event, Text) else [event])]

    def _split(self, text: str) -> list[Event]:
        if self._calls is None:
            return [Text(text)] if text else []
        return self._calls.push(text)


@dataclass(slots=True)
class ParsedCall:
    name: str
    arguments: str = ""


@dataclass(slots=True)
class ParsedReply:
    """Events, joined."""

    thoughts: str = ""
    text: str = ""
    calls: list[ParsedCall] = field(default_factory=list)

    def add(self, events: Sequence[Event]) -> None:
        for event in events:
            match event:
                case Text(text):
                    self.text += text
                case Thought(text):
                    self.thoughts += text
                case CallBegin(name):
                    self.calls.append(ParsedCall(name))
                case Arguments(text):
                    self.calls[-1].arguments += text


def parse_reply(parser: ReplyParser, text: str) -> ParsedReply:
    """A whole reply."""
    reply = ParsedReply()
    reply.add(parser.push(text))
    reply.add(parser.finish())
    return reply
