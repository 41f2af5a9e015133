"""The seam between a function and what executes it: interpreted here, compiled elsewhere, same meaning.

A strategy gets a `Program` and the root `Track` of its run. It executes the program so that the track ends up with the
conversation, the variables and their meta info (`Track.submit`, or directly), and returns what the function returned.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from ramet.errors import Unsupported
from ramet.lang.ambient import enter_conversation
from ramet.lang.bridge import run_body
from ramet.lang.options import Mode
from ramet.lang.process import enter_backend
from ramet.lang.state import State
from ramet.lang.track import Track


@dataclass(frozen=True, slots=True)
class Program:
    """One call: the Python function and its arguments (without the state). `ambient`: it has no state parameter."""

    function: Callable[..., Any]
    ambient: bool
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    @property
    def name(self) -> str:
        return getattr(self.function, "__qualname__", repr(self.function))


class Strategy(Protocol):
    async def execute(self, program: Program, root: Track) -> Any: ...


class Interpreted:
    """Runs the Python body itself, on the event loop, in a greenlet: the slow twin and the oracle of the compiled mode."""

    async def execute(self, program: Program, root: Track) -> Any:
        state = State(root)

        def body() -> Any:
            enter_backend(root.run.backend)
            enter_conversation(state if program.ambient else None)
            arguments = program.args if program.ambient else (state, *program.args)
            return program.function(*arguments, **program.kwargs)

        return await run_body(body, program.name)


def choose_strategy(mode: Mode) -> Strategy:
    """`auto` is interpreted as long as no compiled strategy is plugged in here."""
    if mode == "compiled":
        raise Unsupported("mode='compiled' is not available in this build; use mode='auto' or 'interpreted'", param="mode")
    return Interpreted()
