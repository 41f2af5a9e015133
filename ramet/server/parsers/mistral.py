"""Mistral: [TOOL_CALLS][{"name": …, "arguments": …}, …]; newer tokenizers write [TOOL_CALLS]name[ARGS]{…} for each call."""

from __future__ import annotations

from collections.abc import Container

from ramet.server.parsers.call_object import read_call_object
from ramet.server.parsers.json_scanner import stream_object
from ramet.server.parsers.scan import Mismatch, Scan, Steps
from ramet.server.parsers.tool_format import Wire

BEGIN, CALL_ID, ARGS = "[TOOL_CALLS]", "[CALL_ID]", "[ARGS]"


class MistralFormat:
    name = "mistral"
    wire = Wire(
        opening=f"{BEGIN}[",
        head='{"name": "',
        body='", "arguments": ',
        tail="}",
        separator=", ",
        closing="]",
        trigger=BEGIN,
        markers=(BEGIN, CALL_ID, ARGS),
        id_length=9,
    )

    def read(self, scan: Scan, tools: Container[str]) -> Steps[None]:
        while (yield from scan.find((BEGIN,))):
            yield from scan.spaces()
            if (yield from scan.peek()) == "[":
                yield from self._list(scan, tools)
            else:
                yield from scan.attempt(self._named(scan, tools))

    def _list(self, scan: Scan, tools: Container[str]) -> Steps[None]:
        yield from scan.take()
        more = True
        while more and (yield from scan.attempt(self._listed(scan, tools))):
            more = bool((yield from scan.attempt(self._has_more(scan), in_call=True)))

    def _listed(self, scan: Scan, tools: Container[str]) -> Steps[bool]:
        yield from scan.spaces()
        return (yield from read_call_object(scan, tools))

    def _has_more(self, scan: Scan) -> Steps[bool]:
        yield from scan.spaces()
        if (yield from scan.peek()) not in (",", "]", ""):
            raise Mismatch
        return (yield from scan.take()) == ","

    def _named(self, scan: Scan, tools: Container[str]) -> Steps[None]:
        name = yield from scan.word()
        if name not in tools:
            raise Mismatch
        if (yield from scan.peek()) == "[" and (yield from scan.maybe(CALL_ID)):
            yield from scan.word()
        if (yield from scan.peek()) == "[":
            yield from scan.expect(ARGS)
        yield from scan.spaces()
        if (yield from scan.peek()) != "{":
            raise Mismatch
        scan.begin_call(name)
        yield from stream_object(scan)
