"""What happened in a run, as it happens (events) and afterwards (spans: the data of the waterfall and of explain(analyze=True))."""

from __future__ import annotations

import time
from bisect import bisect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from ramet.ir.types import Location
from ramet.program.backend import Conversation


@dataclass(frozen=True, slots=True)
class Event:
    """`kind` is text (of variable `data["name"]`), branch, started or done (of a span)."""

    kind: str
    location: Location
    data: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Span:
    """One gen, select, host_call, prefetch, pin or free; seconds since the run began."""

    kind: str
    location: Location
    start: float
    end: float
    data: Mapping[str, Any]


@dataclass(slots=True)
class Timeline:
    emit: Callable[[Event], None] | None = None
    spans: list[Span] = field(default_factory=list)
    prompts: list[str] | None = None  # of an analysed run, sorted
    _began: float = field(default_factory=time.monotonic)

    def text(self, location: Location, name: Any, text: str) -> None:
        if self.emit is not None:
            self.emit(Event("text", location, {"name": name, "text": text}))

    def branch(self, location: Location, taken: bool) -> None:
        if self.emit is not None:
            self.emit(Event("branch", location, {"taken": taken}))

    def counts(self, conversation: Conversation, usage: Mapping[str, int]) -> dict[str, int]:
        """What a span says of a generation's tokens."""
        share = self._new_share(conversation)
        new = {} if share is None else {"new_prompt_tokens": round(usage["prompt_tokens"] * share)}
        return {**usage, "tokens": usage["completion_tokens"], **new}

    def _new_share(self, conversation: Conversation) -> float | None:
        """Which share of a prompt begins no earlier prompt of this run: what a perfect prefix cache has to compute. Only in an analysed
        run."""
        if self.prompts is None:
            return None
        text = "".join(f"{part.kind} {part.value}\n" for part in conversation.parts) or " "
        at = bisect(self.prompts, text)
        neighbours = self.prompts[max(0, at - 1) : at + 1]  # in order, so the longest common prefix is with one of these
        shared = max((_common_len(text, each) for each in neighbours), default=0)
        self.prompts.insert(at, text)
        return 1 - shared / len(text)

    @contextmanager
    def span(self, kind: str, location: Location, data: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """The caller may add to what is yielded."""
        start, found = time.monotonic() - self._began, dict(data)
        if self.emit is not None:
            self.emit(Event("started", location, {"op": kind, **found}))
        try:
            yield found
        finally:
            self.spans.append(Span(kind, location, start, time.monotonic() - self._began, found))
            if self.emit is not None:
                self.emit(Event("done", location, {"op": kind, **found}))


def _common_len(left: str, right: str) -> int:
    """Of the longest common prefix, by halving."""
    low, high = 0, min(len(left), len(right))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if left[:middle] == right[:middle] else (low, middle - 1)
    return low


def location_to_json(location: Location) -> list[int]:
    return [location.source, location.line, location.col, location.end_col]


def span_to_json(span: Span) -> dict[str, Any]:
    """For a trace: plain numbers and texts only."""
    return {
        "kind": span.kind,
        "location": location_to_json(span.location),
        "start": round(span.start, 6),
        "end": round(span.end, 6),
        "data": {name: value for name, value in span.data.items() if value is None or isinstance(value, str | int | float | bool)},
    }
