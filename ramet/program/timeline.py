"""What happened in a run, as it happens (events) and afterwards (spans: the data of the waterfall and of explain(analyze=True))."""

from __future__ import annotations

import time
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
    _prefixes: set[int] = field(default_factory=set)
    _began: float = field(default_factory=time.monotonic)

    def text(self, location: Location, name: Any, text: str) -> None:
        if self.emit is not None:
            self.emit(Event("text", location, {"name": name, "text": text}))

    def branch(self, location: Location, taken: bool) -> None:
        if self.emit is not None:
            self.emit(Event("branch", location, {"taken": taken}))

    def new_share(self, conversation: Conversation) -> float:
        """Which share of a prompt's characters stands in no prompt of this run so far: what a perfect prefix cache has to compute."""
        prefix, size, new = 0, 0, 0
        for part in conversation.parts:
            prefix, length = hash((prefix, part)), 1 + len(part.value)
            size += length
            if prefix not in self._prefixes:
                self._prefixes.add(prefix)
                new += length
        return new / size if size else 1.0

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
