"""The compiler on one screen: source → check → scope → graph → SSA → passes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ramet.compiler.cfg import Graph
from ramet.compiler.default_order import DEFAULT
from ramet.compiler.lower import ProgramLowering
from ramet.compiler.pipeline import Between, Note, Notes, PassReport, Pipeline
from ramet.compiler.scope import MISSING, ProgramObject, Verbs, captured
from ramet.ir.module import Module


@dataclass(frozen=True, slots=True)
class CompiledProgram:
    """`lowered` is the module before any pass, the slow twin. `captures` are the outside values that became constants."""

    program: ProgramObject
    module: Module
    lowered: Module
    graphs: Mapping[str, Graph]
    captures: tuple[tuple[Callable[..., Any], Mapping[str, Any]], ...]
    notes: tuple[Note, ...] = ()
    reports: tuple[PassReport, ...] = ()

    def is_current(self) -> bool:
        """Do the captured values still hold? If not, compile again: Python reads them at every run."""
        return all(_resolve(function, name) == value for function, values in self.captures for name, value in values.items())

    def host_function(self, name: str) -> Callable[..., Any]:
        """The Python function behind a host call, looked up now, as Python would."""
        for function, _ in self.captures:
            found = _resolve(function, name)
            if found is not MISSING:
                return found  # type: ignore[no-any-return]
        raise LookupError(f"no function {name!r} is visible from the program")


def compile_program(
    program: ProgramObject, verbs: Verbs, *, pipeline: Pipeline = DEFAULT, between: Between | None = None
) -> CompiledProgram:
    """Raises CompileError with every place that does not compile. `between` sees the module after each pass."""
    lowering = ProgramLowering(verbs)
    lowered = lowering.module(program)
    notes = Notes()
    module, reports = pipeline.run(lowered, notes, between)
    return CompiledProgram(program, module, lowered, lowering.graphs, tuple(lowering.captures), tuple(notes.entries), reports)


def _resolve(function: Callable[..., Any], dotted: str) -> Any:
    head, *rest = dotted.split(".")
    found = captured(function, head)
    for name in rest:
        found = getattr(found, name, MISSING)
    return found
