"""Reasoning between tags: <think>…</think>, and what follows is the answer."""

from __future__ import annotations

from dataclasses import dataclass

from ramet.server.parsers.scan import Mismatch, Scan, Steps, Text, Thought


@dataclass(frozen=True, slots=True)
class ThinkTags:
    """`implied`: the model thinks first, also when no tag says so."""

    name: str
    begin: str = "<think>"
    end: str = "</think>"
    implied: bool = False

    def state_after(self, prompt: str) -> bool | None:
        """Where a reply to `prompt` begins: inside of the thoughts (True), behind them (False), or as the model likes (None)."""
        tail = prompt.rstrip()
        if tail.endswith(self.begin):
            return True
        if tail.endswith(self.end):
            return False
        return True if self.implied else None

    def read(self, scan: Scan, thinking: bool | None) -> Steps[None]:
        """The thoughts without the white space around them, the answer without the line ends before it. Unfinished thoughts are all
        thoughts. Where there are none, the text is the answer as it is."""
        if thinking is not False:
            scan.piece = Thought if thinking else Text
            opened = yield from scan.attempt(self._opening(scan, thinking))
            if opened or thinking:
                yield from self._thoughts(scan)
        scan.piece = Text
        yield from scan.rest()

    def _opening(self, scan: Scan, thinking: bool | None) -> Steps[bool]:
        yield from scan.spaces()
        if thinking:
            scan.drop()
        opened = yield from scan.maybe(self.begin)
        if not opened and not thinking:
            raise Mismatch  # the white space is the answer's
        return opened

    def _thoughts(self, scan: Scan) -> Steps[None]:
        scan.piece = Thought
        yield from scan.spaces()
        scan.drop()
        closed = yield from scan.find((self.end,))
        if closed or scan.held().isspace():
            scan.drop()
        while (yield from scan.peek()) == "\n":
            yield from scan.take()
            scan.drop()
