"""DeepSeek V3: calls between <｜tool▁calls▁begin｜> and <｜tool▁calls▁end｜>, the arguments in a fenced JSON block. V3.1, which is read as
well: name, separator, arguments."""

from __future__ import annotations

from collections.abc import Container

from ramet.server.parsers.json_scanner import stream_object
from ramet.server.parsers.scan import Mismatch, Scan, Steps
from ramet.server.parsers.tool_format import Wire

CALLS_BEGIN, CALLS_END = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
CALL_BEGIN, CALL_END, SEPARATOR = "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>", "<｜tool▁sep｜>"


class DeepSeekFormat:
    name = "deepseekv3"
    wire = Wire(
        opening=CALLS_BEGIN,
        head=f"{CALL_BEGIN}function{SEPARATOR}",
        body="\n```json\n",
        tail=f"\n```{CALL_END}",
        separator="\n",
        closing=CALLS_END,
        trigger=CALLS_BEGIN,
        markers=(CALLS_BEGIN, CALLS_END, CALL_BEGIN, CALL_END, SEPARATOR),
    )

    def read(self, scan: Scan, tools: Container[str]) -> Steps[None]:
        while (yield from scan.find((CALLS_BEGIN,))):
            more = yield from scan.attempt(self._call(scan, tools))
            while more and (yield from scan.attempt(self._has_more(scan), in_call=True)):
                more = yield from scan.attempt(self._call(scan, tools))

    def _call(self, scan: Scan, tools: Container[str]) -> Steps[bool]:
        yield from scan.spaces()
        yield from scan.expect(CALL_BEGIN)
        name = yield from scan.word()
        yield from scan.expect(SEPARATOR)
        if name == "function" and (yield from scan.peek()) != "{":
            name = yield from scan.word()
            yield from scan.expect("\n```json\n")
            yield from scan.spaces()
        if name not in tools or (yield from scan.peek()) != "{":
            raise Mismatch
        scan.begin_call(name)
        yield from stream_object(scan)
        yield from scan.spaces()
        yield from scan.maybe("```")
        yield from scan.maybe(CALL_END)
        return True

    def _has_more(self, scan: Scan) -> Steps[bool]:
        yield from scan.spaces()
        return not (yield from scan.maybe(CALLS_END)) and (yield from scan.peek()) == "<"
