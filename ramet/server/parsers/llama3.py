"""Llama 3: the message begins with {"name": …, "parameters": …}, or such objects follow <|python_tag|>; further ones after a semicolon."""

from __future__ import annotations

from collections.abc import Container

from ramet.server.parsers.call_object import read_call_object
from ramet.server.parsers.scan import Scan, Steps
from ramet.server.parsers.tool_format import Wire

PYTHON_TAG = "<|python_tag|>"


class Llama3Format:
    name = "llama3"
    wire = Wire(head='{"name": "', body='", "parameters": ', tail="}", separator="; ", markers=(PYTHON_TAG,))

    def read(self, scan: Scan, tools: Container[str]) -> Steps[None]:
        yield from self._calls(scan, tools)
        while (yield from scan.find((PYTHON_TAG,))):
            yield from self._calls(scan, tools)

    def _calls(self, scan: Scan, tools: Container[str]) -> Steps[None]:
        yield from scan.spaces()
        more = (yield from scan.peek()) == "{"
        while more:
            if not (yield from scan.attempt(read_call_object(scan, tools, bare=True))):
                return
            more = bool((yield from scan.attempt(self._has_more(scan), in_call=True)))

    def _has_more(self, scan: Scan) -> Steps[bool]:
        yield from scan.spaces()
        if (yield from scan.peek()) == ";":
            yield from scan.take()
            yield from scan.spaces()
        return (yield from scan.peek()) == "{"
