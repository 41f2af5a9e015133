"""The seam between a function and what executes it: interpreted here, compiled elsewhere, same meaning.

A strategy gets a `Program` and the root `Track` of its run. It executes the program so that the track ends up with the
conversation, the variables and their meta info (`Track.submit`, or directly), and returns what the function returned.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from ramet.errors import UserError
from ramet.lang.ambient import Turn, enter_conversation
from ramet.lang.bridge import run_body
from ramet.lang.compilation import Compilation, named_arguments
from ramet.lang.options import Mode
from ramet.lang.process import enter_backend
from ramet.lang.state import State
from ramet.lang.track import Track
from ramet.program.backend import Backend


@dataclass(frozen=True, slots=True)
class Program:
    """One call: the Python function and its arguments (without the state). `ambient`: it has no state parameter."""

    function: Callable[..., Any]
    ambient: bool
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    compilation: Compilation | None = None

    @property
    def name(self) -> str:
        return getattr(self.function, "__qualname__", repr(self.function))


class Strategy(Protocol):
    async def execute(self, program: Program, root: Track) -> Any: ...


class Interpreted:
    """Runs the Python body itself, on the event loop, in a greenlet: the slow twin and the oracle of the compiled mode."""

    async def execute(self, program: Program, root: Track) -> Any:
        state = State(root)
        root.run.start_clock()
        await root.run.know_chat()

        def body() -> Any:
            enter_backend(root.run.backend)
            enter_conversation(state if program.ambient else None)
            arguments = program.args if program.ambient else (state, *program.args)
            return program.function(*arguments, **program.kwargs)

        value = await run_body(body, program.name)
        return await value.words() if isinstance(value, Turn) else value


def choose_strategy(program: Program, mode: Mode, backend: Backend) -> Strategy:
    """Compiled where source and arguments allow it. Where they do not, `auto` interprets and `compiled` raises what is in the way."""
    if mode == "interpreted" or program.compilation is None:
        return Interpreted()
    try:
        return _compiled(program, program.compilation, backend)
    except UserError:
        if mode == "compiled":
            raise
        return Interpreted()


def _compiled(program: Program, compilation: Compilation, backend: Backend) -> Strategy:
    from ramet.lang.compiled import InProcess

    prepared = compilation.get()
    arguments = named_arguments(program.function, program.ambient, program.args, program.kwargs)
    if getattr(backend, "programs", None) is None:
        return InProcess(prepared.compiled, arguments)
    from ramet.lang.remote import OnServer

    return OnServer(prepared, arguments, backend.programs)  # type: ignore[attr-defined]
