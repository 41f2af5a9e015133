"""Hermes and Qwen: <tool_call>{"name": …, "arguments": …}</tool_call>, as many as the model likes, anywhere in the text."""

from __future__ import annotations

from collections.abc import Container

from ramet.server.parsers.call_object import read_call_object
from ramet.server.parsers.scan import Scan, Steps
from ramet.server.parsers.tool_format import Wire

BEGIN, END = "<tool_call>", "</tool_call>"


class HermesFormat:
    name = "hermes"
    wire = Wire(
        head=f'{BEGIN}\n{{"name": "',
        body='", "arguments": ',
        tail=f"}}\n{END}",
        separator="\n",
        trigger=BEGIN,
        markers=(BEGIN, END),
    )

    def read(self, scan: Scan, tools: Container[str]) -> Steps[None]:
        while (yield from scan.find((BEGIN,))):
            yield from scan.attempt(self._call(scan, tools))

    def _call(self, scan: Scan, tools: Container[str]) -> Steps[None]:
        yield from scan.spaces()
        yield from read_call_object(scan, tools)
        yield from scan.spaces()
        yield from scan.maybe(END)
