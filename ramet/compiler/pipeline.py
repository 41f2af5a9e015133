"""Passes in a row: flat, named, each of them optional, with one callback between them for verifying, timing and printing."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from ramet.errors import InvalidRequest
from ramet.ir.module import Module
from ramet.ir.types import Location
from ramet.ir.verify import verify


@dataclass(frozen=True, slots=True)
class Note:
    """One thing that a pass did (`done`) or decided not to do, at a place of the user's code, and why."""

    by: str
    location: Location
    done: bool
    what: str


@dataclass(slots=True)
class Notes:
    """What passes say about their work: the data of explain()."""

    entries: list[Note] = field(default_factory=list)
    by: str = ""

    def did(self, location: Location, what: str) -> None:
        self.entries.append(Note(self.by, location, True, what))

    def did_not(self, location: Location, what: str) -> None:
        self.entries.append(Note(self.by, location, False, what))


@dataclass(frozen=True, slots=True)
class Pass:
    """`run` returns a module of the same meaning, or the very same module when it found nothing to do."""

    name: str
    run: Callable[[Module, Notes], Module]


@dataclass(frozen=True, slots=True)
class PassReport:
    name: str
    seconds: float
    ops_before: int
    ops_after: int


Between = Callable[[Pass, Module], None]


@dataclass(frozen=True, slots=True)
class Pipeline:
    passes: tuple[Pass, ...]

    def without(self, names: Sequence[str]) -> Pipeline:
        known = {each.name for each in self.passes}
        if unknown := [name for name in names if name not in known]:
            raise InvalidRequest(f"there is no pass {unknown[0]!r}; passes: {', '.join(sorted(known))}")
        return Pipeline(tuple(each for each in self.passes if each.name not in names))

    def only(self, name: str) -> Pipeline:
        return Pipeline(tuple(each for each in self.passes if each.name == name))

    def run(self, module: Module, notes: Notes, between: Between | None = None) -> tuple[Module, tuple[PassReport, ...]]:
        """Verified before the first pass and after each."""
        verify(module)
        reports: list[PassReport] = []
        for each in self.passes:
            notes.by = each.name
            began, before = time.perf_counter(), module
            module = each.run(module, notes)
            reports.append(PassReport(each.name, time.perf_counter() - began, before.num_ops(), module.num_ops()))
            if module is not before:
                verify(module)
            if between is not None:
                between(each, module)
        return module, tuple(reports)
