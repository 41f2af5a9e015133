"""What happened in a run, as it happens (events) and afterwards (spans: the data of the waterfall and of explain(analyze=True))."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from ramet.ir.types import Location


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
    _began: float = field(default_factory=time.monotonic)

    def text(self, location: Location, name: Any, text: str) -> None:
        if self.emit is not None:
            self.emit(Event("text", location, {"name": name, "text": text}))

    def branch(self, location: Location, taken: bool) -> None:
        if self.emit is not None:
            self.emit(Event("branch", location, {"taken": taken}))

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
